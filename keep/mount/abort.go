package mount

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// abortMount aborts the connection of the FUSE mount at exactly that path, the
// topmost, and only if its device number is device, unless that is "". No mount
// is no error.
//
// The kernel gives a connection's number, which is how it is aborted, to the next
// FUSE mount as soon as the mount is gone, and that would be another container's.
// So the mount is held meanwhile, by a descriptor that asks the server nothing
// (open(2), O_PATH), and the number read is that of the mount that is held.
func abortMount(point, device string) error {
	fd, err := unix.Open(point, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: point, Err: err}
	}
	defer unix.Close(fd)
	id, err := mountOf(fd)
	if err != nil {
		return err
	}
	mounts, err := fuseMounts(point)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(mounts, func(m mountInfo) bool { return m.id == id })
	if i < 0 || device != "" && mounts[i].device != device {
		return nil
	}
	return abortConnection(mounts[i].device)
}

// mountOf returns the id of the mount that a descriptor is on (proc(5), fdinfo).
func mountOf(fd int) (id string, err error) {
	path := fmt.Sprintf("/proc/self/fdinfo/%d", fd)
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s names no mount", path)
}
