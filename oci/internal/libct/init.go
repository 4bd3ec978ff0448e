package libct

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// lifelineFd is where the container's init finds its end of the lifeline: the
// first of Process.ExtraFiles.
const lifelineFd = 3

// reaperFd is where it finds the program that is executed in place of the command,
// if there is one: the second of Process.ExtraFiles.
const reaperFd = 4

// WithReaper is written to the creator's end of the lifeline, before the container
// is started, if there is a reaper.
const WithReaper = 'i'

// hasReaper looks for WithReaper, which is there already or never will be.
func hasReaper() bool {
	var b [1]byte
	n, _, err := unix.Recvfrom(lifelineFd, b[:], unix.MSG_DONTWAIT)
	return err == nil && n == 1 && b[0] == WithReaper
}

// IsInit tells whether this process was started by libcontainer to become a
// container's init. The variable is checked as well, so that a user who types
// the word is not answered by a crash.
func IsInit(args []string) bool {
	return len(args) == 2 && args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != ""
}

// Init becomes the container's init and, in the end, its command. It does not
// return.
//
// When it is called, nsenter's C code has already made the namespaces: this is
// the last of three processes cloned from one another. Each is a child of the
// creator, but none inherits the parent-death signal set on the first, so it
// is set here. libcontainer puts it back after it has changed the user ids,
// which clears it; execve(2) keeps it, unless the command itself is a
// set-user-ID program.
//
// The signal alone leaves two gaps, in which the creator could die unnoticed:
// before it is set, and while it is cleared. getppid(2) does not tell, because
// in a PID namespace of its own it is 0 with and without a living parent.
// So the creator holds one end of a pair of sockets, and this process reads the
// other until it executes the command: end of file means that the creator is
// gone. The command does not get the descriptor. The other direction carries
// the reason if the command cannot be executed, so that silence means success.
// Before that the creator may send a system call filter; see LoadFilter.
//
// A process that enters a container which runs already (see Guest.Enter) comes
// this way as well. It is in the container's PID namespace, with whose first
// process it ends, and needs no parent-death signal of its own; that would come
// too early, from the thread that made it. It waits until it is admitted.
func Init() {
	runtime.GOMAXPROCS(1)
	// The signal belongs to the thread that asks for it, and must be that of
	// the thread that executes the command.
	runtime.LockOSThread()
	if err := attach(); err != nil {
		fmt.Fprintln(os.Stderr, "container init:", err)
		os.Exit(initFailed)
	}
	libcontainer.Init()
}

// initFailed is the exit status of an init that could not execute its command;
// libcontainer uses the same.
const initFailed = 255

func attach() error {
	enters := os.Getenv("_LIBCONTAINER_INITTYPE") == "setns"
	if !enters {
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl(PR_SET_PDEATHSIG)", err)
		}
	}
	if t, err := unix.GetsockoptInt(lifelineFd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_STREAM {
		return fmt.Errorf("descriptor %d is not the lifeline to the creator of the container", lifelineFd)
	}
	closed := lifelineFd
	if !enters && hasReaper() {
		closed = reaperFd // the reaper gets the lifeline, and the command neither
	}
	if _, err := unix.FcntlInt(uintptr(closed), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return os.NewSyscallError("fcntl(F_SETFD)", err)
	}
	// libcontainer reports here what it cannot report otherwise, first of all
	// that execve(2) failed.
	os.Stderr = os.NewFile(lifelineFd, "lifeline")
	if enters {
		// So does the Go runtime, which gives up where it gets no thread: in a
		// container that has all the processes it may have.
		debug.SetTraceback("none")
		if err := debug.SetCrashOutput(os.Stderr, debug.CrashOptions{}); err != nil {
			return err
		}
		if err := awaitAdmission(); err != nil {
			return err
		}
	}
	return guard(enters)
}

// guard ends this process when the creator's end of the lifeline is closed, and
// does what comes along it before.
func guard(enters bool) error {
	var loader filterLoader
	begun := make(chan error)
	go func() {
		// Its capabilities are the thread's.
		runtime.LockOSThread()
		if !enters {
			begun <- loader.keepCapabilities()
		}
		close(begun)
		_ = loader.serve(rawLifeline{})
		// Not by a signal: the first process of a PID namespace ignores those
		// it sends to itself.
		unix.Exit(128 + int(unix.SIGKILL))
	}()
	return <-begun
}
