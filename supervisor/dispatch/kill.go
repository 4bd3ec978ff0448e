package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/filelock"
)

const (
	// killPatience is how long Kill waits for the end of the process.
	killPatience = time.Second
	killPoll     = 10 * time.Millisecond
)

// Kill sends a signal to the supervisor of a container and waits a second for
// its end. It returns the exit status: 0 only if the supervisor is gone, or
// never was; callers try again until then.
func (d Dir) Kill(ctx context.Context, uuid string, signal int, stderr io.Writer) int {
	fail := func(format string, args ...any) int {
		fmt.Fprintf(stderr, format+"\n", args...)
		return 1
	}
	path := d.RunLock(uuid)
	f, err := openRegular(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		return fail("%v", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail("%v", err)
	}
	p, err := readProcinfo(f)
	if err != nil {
		return fail("decode %s: %v", path, err)
	}
	if p.UUID != uuid || p.PID <= 0 {
		return fail("%s: bogus procinfo: {UUID:%s PID:%d}", path, quoted(p.UUID), p.PID)
	}
	gone := func() int {
		fmt.Fprintf(stderr, "%s: pid %d: %v\n", uuid, p.PID, os.ErrProcessDone)
		return 0
	}
	s := findSupervisor(p.PID, info)
	if s == nil {
		return gone()
	}
	defer s.release()
	sig := unix.Signal(signal)
	if err := s.signal(sig); errors.Is(err, os.ErrProcessDone) {
		return gone()
	} else if err != nil {
		return fail("%s: pid %d: %v", uuid, p.PID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	if !pollUntil(ctx, func() bool { return !s.alive() }) {
		return fail("%s: pid %d: sent signal %d (%v) but process is still alive", uuid, p.PID, signal, sig)
	}
	// What it had started dies with it, but a moment later. The same container
	// can be started again only then, and the caller may want that.
	pollUntil(ctx, func() bool { return filelock.Flock(f, unix.LOCK_SH|unix.LOCK_NB) == nil })
	return gone()
}

// pollUntil looks until ok, or ctx ends, and returns whether it was ok. Another
// process's end cannot be waited for before Linux 5.3, nor can a file lock in a
// way that can be cancelled.
func pollUntil(ctx context.Context, ok func() bool) bool {
	tick := time.NewTicker(killPoll)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ok()
		}
	}
	return true
}
