package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/filelock"
)

// List prints what a dispatcher wants to know: "broken" if the node is, and a
// line for each run whose lock is held: its UUID, followed by "stale" if its
// supervisor is gone. Supervisors that live get SIGUSR2: the prices may be new.
// Lock files of runs that have ended are removed.
//
// Nothing that is wrong with a file, or with the directory, is a reason not to
// tell of the rest: what a list does not mention has ended, as far as the
// dispatcher is concerned, and without any list it destroys the node.
func (d Dir) List(ctx context.Context, found Found, stdout, stderr io.Writer) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(stderr, err)
	}
	if found.Broken {
		fmt.Fprintln(stdout, "broken")
	}
	l := listing{dir: d, stderr: stderr, lives: map[string]bool{}}
	for _, e := range entries {
		name := e.Name()
		switch {
		case name == allName:
		case name == brokenName:
			if !found.Broken {
				fmt.Fprintln(stdout, "broken")
			}
		case strings.HasPrefix(name, lockPrefix) && strings.HasSuffix(name, lockSuffix):
			l.examine(ctx, filepath.Join(string(d), name))
		}
	}
	for _, uuid := range found.Alive {
		if ValidUUID(uuid) {
			l.note(uuid, false)
		}
	}
	for _, uuid := range l.uuids {
		if l.lives[uuid] {
			fmt.Fprintln(stdout, uuid)
		} else {
			fmt.Fprintln(stdout, uuid, "stale")
		}
	}
}

// Found is what the caller knows about the node besides.
type Found struct {
	// Broken says that the node cannot run containers.
	Broken bool
	// Alive are runs whose supervisor is dead but which have processes
	// nevertheless; they are stale.
	Alive []string
}

// listing is one list being made.
type listing struct {
	dir        Dir
	stderr     io.Writer
	uuids      []string        // of runs, in the order they were found
	lives      map[string]bool // whether there is a supervisor
	cannotLock bool            // the directory; it has been said why
}

// note adds what is known about a run. A copy of a lock file does not make one
// stale.
func (l *listing) note(uuid string, lives bool) {
	if _, known := l.lives[uuid]; !known {
		l.uuids = append(l.uuids, uuid)
	}
	l.lives[uuid] = l.lives[uuid] || lives
}

// examine looks at one lock file.
func (l *listing) examine(ctx context.Context, path string) {
	info, err := os.Lstat(path)
	if err != nil || info.Size() == 0 && info.Mode().IsRegular() {
		return // gone; or being made
	}
	if !info.Mode().IsRegular() {
		fmt.Fprintln(l.stderr, &fs.PathError{Op: "open", Path: path, Err: errNotRegular})
		return
	}
	f, err := openRegular(path, os.O_RDONLY)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case errors.Is(err, fs.ErrPermission):
		return // somebody else's
	case err != nil:
		fmt.Fprintln(l.stderr, err)
		return
	}
	defer f.Close()
	if !l.held(ctx, f, path) {
		return
	}
	p, err := readProcinfo(f)
	if err == nil {
		err = p.bogus()
	}
	if err != nil {
		fmt.Fprintf(l.stderr, "%s: %v\n", path, err)
		return
	}
	info, err = f.Stat()
	l.note(p.UUID, err == nil && notify(p.PID, info))
}

// held reports whether somebody has the lock of f. A file that nobody has locked
// is removed. Both happen under the directory's lock: a new run of the container
// would find its lock taken, or get that of a file without a name.
func (l *listing) held(ctx context.Context, f *os.File, path string) bool {
	all, err := l.lockAll(ctx)
	if err != nil {
		// What runs can be told without it, if the moment is short.
		l.cannotLock = true
		fmt.Fprintf(l.stderr, "%v: lock files of ended runs are not removed\n", err)
	}
	if all != nil {
		defer all.Close()
	}
	if err := filelock.Flock(f, unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return true
	}
	defer func() { _ = filelock.Flock(f, unix.LOCK_UN) }()
	if all == nil {
		return false
	}
	// The name may have been given to a new run's file since this was opened.
	if same, err := filelock.StillNamed(f, path); err == nil && same {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(l.stderr, "unlink %s: %v\n", path, errors.Unwrap(err))
		}
	}
	return false
}

// lockAll takes the directory's lock, unless that has failed before.
func (l *listing) lockAll(ctx context.Context) (*os.File, error) {
	if l.cannotLock {
		return nil, nil
	}
	return l.dir.lockAll(ctx)
}

// notify sends SIGUSR2 to the supervisor that holds a lock file, and reports
// whether there is one.
func notify(pid int, lock os.FileInfo) bool {
	s := findSupervisor(pid, lock)
	if s == nil {
		return false
	}
	defer s.release()
	err := s.signal(unix.SIGUSR2)
	// It is there although this user may not signal it.
	return err == nil || errors.Is(err, fs.ErrPermission)
}
