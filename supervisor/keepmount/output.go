package keepmount

import (
	"io"
	"os"
	"sync"
	"time"
)

// output carries what a server writes to the writers of its Config. They may
// block while Keep is stuck, which must delay neither the news of the server's
// end nor, by more than a limit, Stop.
type output struct {
	readers []*os.File
	copies  sync.WaitGroup
}

func newOutput() *output { return new(output) }

// pipe returns the end for the server; the caller closes its own copy. The
// goroutine at the other end lives until all copies are closed, or finish is
// called, and w has taken what was read.
func (o *output) pipe(w io.Writer) (*os.File, error) {
	r, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	o.readers = append(o.readers, r)
	o.copies.Go(func() {
		defer r.Close()
		if _, err := io.Copy(w, r); err != nil {
			// A server must not stop at a full pipe because its log does.
			_, _ = io.Copy(io.Discard, r)
		}
	})
	return theirs, nil
}

// finish waits, for little more than d, until all that was written has been taken, and
// says whether it has. A process that the server has left behind may keep a pipe
// open; what it writes later is not waited for.
func (o *output) finish(d time.Duration) bool {
	done := make(chan struct{})
	go func() { defer close(done); o.copies.Wait() }()
	if closedWithin(done, d) {
		return true
	}
	for _, r := range o.readers {
		// Ends a Read, not a Write: then nothing more was there.
		_ = r.SetReadDeadline(time.Now())
	}
	return closedWithin(done, d/4)
}
