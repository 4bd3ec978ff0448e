package dispatch

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// supervisor is the process that a lock file names, held on to: it cannot
// become another one.
type supervisor struct {
	pid     int
	process *os.Process
}

// findSupervisor returns the process that holds the lock file, or nil if pid is
// not one: it has ended, or its number has been given to another process.
//
// Every supervisor, Arvados' own too, has its lock file open for as long as it
// lives. Who may not look at a process's files takes it for what it claims to
// be, since he cannot signal it either.
func findSupervisor(pid int, lock os.FileInfo) *supervisor {
	// On Linux 5.4 and later this gets a handle (pidfd_open(2)): what is looked
	// at next is then what will be signalled, or nothing.
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil
	}
	s := &supervisor{pid, p}
	if !s.alive() || !hasOpen(pid, lock) {
		s.release()
		return nil
	}
	return s
}

func (s *supervisor) release() { _ = s.process.Release() }

// signal sends a signal. The error is os.ErrProcessDone if the process has
// ended.
func (s *supervisor) signal(sig unix.Signal) error { return s.process.Signal(sig) }

// alive reports whether the process is there. One that has ended and whose
// parent has not noticed yet is not.
func (s *supervisor) alive() bool {
	if err := s.process.Signal(unix.Signal(0)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return false
	}
	return !zombie(s.pid)
}

func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The state follows the name, which is in brackets and may hold others.
	i := bytes.LastIndexByte(stat, ')')
	return i >= 0 && i+2 < len(stat) && (stat[i+2] == 'Z' || stat[i+2] == 'X')
}

// hasOpen reports whether a process has a file open, or may have.
func hasOpen(pid int, file os.FileInfo) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	fds, err := os.ReadDir(dir)
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	for _, fd := range fds {
		if info, err := os.Stat(dir + "/" + fd.Name()); err == nil && os.SameFile(info, file) {
			return true
		}
	}
	return false
}
