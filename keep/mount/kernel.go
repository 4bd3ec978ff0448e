package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountInfo is a line of /proc/self/mountinfo, see proc_pid_mountinfo(5).
type mountInfo struct {
	device string // "major:minor"
	point  string
	fstype string
	id     string // of the mount, while it is held
}

// parseMountinfo reads the table of mounts. Lines it does not understand are
// skipped: the kernel may add to them.
func parseMountinfo(r io.Reader) ([]mountInfo, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var list []mountInfo
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 1 {
			continue
		}
		list = append(list, mountInfo{device: f[2], point: unescapeMount(f[4]), fstype: g[0], id: f[0]})
	}
	return list, nil
}

// unescapeMount undoes the \ooo escapes of blank, tab, line feed and backslash.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// fuseMounts returns the FUSE mounts at exactly that path, the topmost last. It
// never looks at the path itself: a dead server would make that hang or fail.
func fuseMounts(path string) ([]mountInfo, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := parseMountinfo(f)
	if err != nil {
		return nil, err
	}
	var list []mountInfo
	for _, m := range all {
		if m.point == path && (m.fstype == "fuse" || strings.HasPrefix(m.fstype, "fuse.")) {
			list = append(list, m)
		}
	}
	return list, nil
}

// setReadAhead lets the kernel read up to n bytes ahead of a program on the file
// system with that device number. The FUSE protocol can only lower the default
// of 128 KiB.
func setReadAhead(device string, n int) error {
	path := filepath.Join("/sys/class/bdi", device, "read_ahead_kb")
	return os.WriteFile(path, []byte(strconv.Itoa(n>>10)), 0)
}

// abortConnection makes every request to a FUSE server fail with ENOTCONN, those
// that wait and those to come, whatever state the server is in. See
// Documentation/filesystems/fuse/fuse.rst, "Aborting a filesystem connection".
func abortConnection(device string) error {
	major, minor, ok := strings.Cut(device, ":")
	if !ok || major != "0" || !only(minor, "0123456789") || minor == "" {
		return fmt.Errorf("device %q is not that of a FUSE connection", device)
	}
	err := os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// The control file system may just not be mounted. It need not appear
	// anywhere to be used (since Linux 5.2).
	fd, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen fusectl", err)
	}
	defer unix.Close(fd)
	if err := unix.FsconfigCreate(fd); err != nil {
		return os.NewSyscallError("fsconfig fusectl", err)
	}
	root, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fsmount fusectl", err)
	}
	defer unix.Close(root)
	abort, err := unix.Openat(root, minor+"/abort", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "fusectl " + minor + "/abort", Err: err}
	}
	defer unix.Close(abort)
	_, err = unix.Write(abort, []byte("1"))
	return os.NewSyscallError("write fusectl abort", err)
}
