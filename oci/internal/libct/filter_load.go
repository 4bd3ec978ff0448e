package libct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterLoader is a thread of a container's init that waits for orders.
//
// A system call filter may be loaded by a process that has CAP_SYS_ADMIN in its
// user namespace, or that can gain no privileges by execve(2). A container's
// first process should have neither, and libcontainer makes it so without a
// stop. But capabilities belong to threads: this one keeps those it began with,
// and gives the filter to all threads at once (SECCOMP_FILTER_FLAG_TSYNC). It
// ends when the command is executed, as all threads but the one that calls
// execve(2) do; until then nothing but libcontainer's init runs in the container.
type filterLoader struct{}

// keepCapabilities makes the calling thread keep what it is permitted when the
// process changes its user, which libcontainer does for all threads.
func (filterLoader) keepCapabilities() error {
	return os.NewSyscallError("prctl(PR_SET_KEEPCAPS)", unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0))
}

// maxFilter is the most instructions the kernel takes (BPF_MAXINSNS).
const maxFilter = 4096

// serve reads orders until the end of the lifeline, which it returns.
func (l filterLoader) serve(lifeline io.ReadWriter) error {
	for {
		var head [8]byte
		if _, err := io.ReadFull(lifeline, head[:]); err != nil {
			return err
		}
		flags, size := binary.LittleEndian.Uint32(head[:4]), binary.LittleEndian.Uint32(head[4:])
		if size == 0 || size%sockFilterSize != 0 || size > maxFilter*sockFilterSize {
			return errors.New("unexpected order from the creator of the container")
		}
		program := make([]byte, size)
		if _, err := io.ReadFull(lifeline, program); err != nil {
			return err
		}
		answer := loaded
		if err := l.load(flags, program); err != nil {
			answer = err.Error()
		}
		if _, err := io.WriteString(lifeline, answer); err != nil {
			return err
		}
	}
}

func (filterLoader) load(flags uint32, program []byte) error {
	if err := raiseCapabilities(); err != nil {
		return err
	}
	instructions := make([]unix.SockFilter, len(program)/sockFilterSize)
	for i := range instructions {
		b := program[i*sockFilterSize:]
		instructions[i] = unix.SockFilter{Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])}
	}
	prog := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}
	culprit, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		uintptr(flags|unix.SECCOMP_FILTER_FLAG_TSYNC), uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(instructions)
	if errno != 0 {
		return os.NewSyscallError("seccomp(SECCOMP_SET_MODE_FILTER)", errno)
	}
	if culprit != 0 {
		return fmt.Errorf("seccomp(SECCOMP_SET_MODE_FILTER): thread %d has another filter", culprit)
	}
	return nil
}

// raiseCapabilities makes effective what the calling thread is permitted.
func raiseCapabilities() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for i := range data {
		data[i].Effective = data[i].Permitted
	}
	return os.NewSyscallError("capset", unix.Capset(&head, &data[0]))
}

// rawLifeline reads and writes the lifeline with nothing but system calls, on the
// calling thread.
type rawLifeline struct{}

func (rawLifeline) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(lifelineFd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (rawLifeline) Write(p []byte) (int, error) {
	for {
		n, err := unix.Write(lifelineFd, p)
		if err != unix.EINTR {
			return n, os.NewSyscallError("write", err)
		}
	}
}
