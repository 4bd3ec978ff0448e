package dispatch

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Inherited is what a supervisor in the background has got from the process that
// started it (Dir.Detach).
type Inherited struct {
	// Lock is the locked lock file. Helper processes that the run could not do
	// without inherit it: the lock then stays for as long as one of them lives.
	Lock *os.File

	report *os.File
}

// Inherit returns what the supervisor of the container has inherited, or nil if
// it has been started by hand. It makes sure that the lock file names this
// process, also if the starting one has been killed before it could.
func Inherit(uuid string) (*Inherited, error) {
	lock := inheritedFile(lockFd, lockPrefix+uuid+lockSuffix, unix.S_IFREG)
	if lock == nil {
		return nil, nil
	}
	in := &Inherited{Lock: lock, report: inheritedFile(reportFd, "", unix.S_IFIFO)}
	if err := (procinfo{uuid, os.Getpid()}).record(lock); err != nil {
		return nil, err
	}
	return in, nil
}

// KeepPrivate makes sure that no child inherits the files, nor any other that
// this process has inherited. It is called when this process will not execute
// itself again. It does so for processes started by hand, too (nil).
func (in *Inherited) KeepPrivate() error { return closeOnExec() }

// inheritedFile returns a descriptor as a file, if it is open, of the kind, and
// of a file called name, or of any if name is "".
func inheritedFile(fd int, name string, kind uint32) *os.File {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != kind {
		return nil
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil || name != "" && filepath.Base(path) != name {
		return nil
	}
	return os.NewFile(uintptr(fd), path)
}

// Messages returns a writer for what the supervisor says before Accept, which
// the process that started it is to hear as well.
func (in *Inherited) Messages(stderr io.Writer) io.Writer {
	if in == nil || in.report == nil {
		return stderr
	}
	return &reporting{stderr, in}
}

type reporting struct {
	stderr io.Writer
	in     *Inherited
}

func (r *reporting) Write(p []byte) (int, error) {
	if r.in.report != nil {
		_, _ = r.in.report.Write(p) // that process may be dead
	}
	return r.stderr.Write(p)
}

// Accept tells the process that started this one that the supervisor has
// understood everything and goes to work. It is called once, before the writer
// of Messages is used by several goroutines.
func (in *Inherited) Accept() {
	if in == nil || in.report == nil {
		return
	}
	_, _ = in.report.Write([]byte{accepted})
	_ = in.report.Close()
	in.report = nil
}

// closeOnExec keeps the files that this process has inherited, by whoever's
// mistake, from its children: a session of SSH, or a pipe, would stay open with
// them.
func closeOnExec() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
		return err
	}
	// Before Linux 5.11, or where a filter forbids the call.
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("close inherited files: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
