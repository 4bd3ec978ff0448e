package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// inside runs fn on a thread in the network namespace ns. Sockets that fn opens
// stay in it; files below /proc/sys/net are that namespace's.
func inside(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go offMainThread(func() {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the container's network namespace: %w", err)
			return
		}
		done <- fn()
	})
	return <-done
}

// refuseOwnNetns fails if ns is the network namespace of this process: what is done
// to a container's would cut the host off.
func refuseOwnNetns(ns *os.File) error {
	theirs, err := ns.Stat()
	if err != nil {
		return fmt.Errorf("examine the container's network namespace: %w", err)
	}
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("examine our network namespace: %w", err)
	}
	if os.SameFile(theirs, own) {
		return errors.New("the container has no network namespace of its own")
	}
	return nil
}

// offMainThread runs fn on a thread that ends with it, and so may be changed in
// any way. It is not the main thread, which never ends, and whose namespaces are
// what /proc/self shows.
func offMainThread(fn func()) {
	runtime.LockOSThread() // and never unlocked: Go ends the thread with its goroutine
	if unix.Gettid() != unix.Getpid() {
		fn()
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		fn()
	}()
	<-done
}

// sysctlDir is where the kernel's parameters are.
const sysctlDir = "/proc/sys/net"

// sysctl reads a parameter below net, "ipv4/ip_forward".
func sysctl(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctlDir, name))
	if err != nil {
		return "", err
	}
	n := len(b)
	for n > 0 && (b[n-1] == '\n' || b[n-1] == ' ') {
		n--
	}
	return string(b[:n]), nil
}

// setSysctl writes a parameter below net, unless it has the value.
func setSysctl(name, value string) error {
	if have, err := sysctl(name); err == nil && have == value {
		return nil
	}
	return os.WriteFile(filepath.Join(sysctlDir, name), []byte(value), 0)
}
