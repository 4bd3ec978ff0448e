// Package mountns gives the process a mount namespace of its own, so that
// whatever it mounts is gone when it is gone, even after SIGKILL.
package mountns

import (
	"errors"
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
	if err := becomeSlave("/"); errors.Is(err, unix.EINVAL) {
		if err := newRoot(); err != nil {
			return fmt.Errorf(`the root directory must be a mount point, and cannot be made one: %w; run "mount --bind DIR DIR" before "chroot DIR"`, err)
		}
	} else if err != nil {
		return err
	}
	// By this path a program file replaced meanwhile (an upgrade) does not
	// change what runs.
	err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), marker+"="+pid))
	return fmt.Errorf("execute %s again in its mount namespace: %w (is /proc mounted?)", os.Args[0], err)
}

func becomeSlave(root string) error {
	if err := unix.Mount("", root, "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts slaves of the host's: %w", err)
	}
	return nil
}

// newRoot makes a mount point of the root directory, which in a plain chroot(2)
// is none: nothing could change its propagation, and no container could be
// started, since pivot_root(2) needs a root that is one.
//
// A bind mount of it onto itself would arrive at the host, if the mount the
// root directory lies in is shared. So it is made on top of a directory of
// /proc, in our copy of that mount, which is first made private. Nobody else
// sees it, and the rest of /proc is hidden behind the new root anyway.
func newRoot() error {
	const proc, place = "/proc", "/proc/fs"
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the working directory: %w", err)
	}
	if err := unix.Mount("", proc, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w (is it mounted?)", proc, err)
	}
	if err := unix.Mount("/", place, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind / to %s: %w", place, err)
	}
	if err := becomeSlave(place); err != nil {
		return err
	}
	// The thread has its own root since unshare(2), and takes it along.
	if err := unix.Chroot(place); err != nil {
		return fmt.Errorf("change the root to %s: %w", place, err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("go back to %s in the new root: %w", dir, err)
	}
	return nil
}
