// Package mountns gives the process a mount namespace of its own, so that
// whatever it mounts is gone when it is gone, even after SIGKILL.
package mountns

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// marker is set for the second execution only, to the process id, which
// execve(2) keeps; so a value inherited from another process means nothing.
const marker = "CRUNCH_RUN_MOUNTNS"

// Enter returns at once when the process is already in a namespace made by
// Enter. Otherwise it makes one, in which the host's mounts and unmounts still
// arrive but no mount leaves (propagation rslave, mount_namespaces(7)), and
// executes the program again in it, with the same arguments and process id; it
// then returns only if that failed.
//
// A namespace belongs to a thread (unshare(2)) and Go moves goroutines between
// threads: executing again from the thread that has it is what gives it to the
// whole process. Call Enter before anything is acquired that execve would lose.
func Enter() error {
	pid := strconv.Itoa(os.Getpid())
	if os.Getenv(marker) == pid {
		// The kernel took the name from the path executed, "exe". It is only
		// what ps and killall show, so failing to set it is no error.
		_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
		return os.Unsetenv(marker)
	}
	// Not unlocked on failure: the thread's namespace is spoilt, and the
	// caller is about to end.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w (crunch-run needs root and CAP_SYS_ADMIN)", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts slaves of the host's: %w", err)
	}
	// By this path a program file replaced meanwhile (an upgrade) does not
	// change what runs.
	err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), marker+"="+pid))
	return fmt.Errorf("execute %s again in its mount namespace: %w (is /proc mounted?)", os.Args[0], err)
}
