package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// The main goroutine stays on the first thread, which is what "traced leader" needs.
func init() { runtime.LockOSThread() }

// traced makes the parent the tracer (ptrace(2), PTRACE_TRACEME) of the first thread
// or of another one, which then gets a signal, executes a program, or just ends.
func traced(how string) {
	handled := make(chan os.Signal, 1)
	signal.Notify(handled, syscall.SIGUSR1)
	me := func() {
		_, _, errno := syscall.RawSyscall(syscall.SYS_PTRACE, 0, 0, 0)
		if errno != 0 {
			check(errno)
		}
	}
	shot := func() {
		_, _, _ = syscall.RawSyscall(syscall.SYS_TGKILL, uintptr(os.Getpid()), uintptr(syscall.Gettid()), uintptr(syscall.SIGUSR1))
		<-handled
	}
	switch how {
	case "leader":
		me()
		shot()
	case "exec":
		me()
		check(syscall.Exec("/bin/sh", []string{"sh", "-c", "echo traced; exit 7"}, os.Environ()))
	case "thread", "thread-signal", "thread-exec":
		done := make(chan struct{})
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine
			defer close(done)
			me()
			switch how {
			case "thread-signal":
				shot()
			case "thread-exec": // it becomes the first thread
				check(syscall.Exec("/bin/sh", []string{"sh", "-c", "echo traced; exit 7"}, os.Environ()))
			}
		}()
		<-done
	}
	fmt.Println("traced")
	os.Exit(7)
}
