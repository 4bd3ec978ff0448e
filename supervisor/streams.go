package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/oci"
	"crunch-oci/supervisor/joblog"
)

// drainTimeout bounds how long after the container's end its output is still
// read: by then the kernel has ended every process of the container, so that
// only a program outside of it can hold the pipe open.
const drainTimeout = 10 * time.Second

// logTimeout bounds how long the end of the output waits for a Keep that takes
// no more log data: longer than a restart of its servers.
const logTimeout = 10 * time.Minute

// streams are the standard streams of the container: the files it gets, and the
// goroutines that move bytes between those and their other ends.
type streams struct {
	stdio oci.Stdio
	given []*os.File // the container's ends, as far as they are open here too
	out   []*outputCopy
	in    *inputCopy
}

// openStreams makes the three streams as the plan says (spec: lifecycle section
// 12, mounts-and-output section 6).
func (r *run) openStreams(ctx context.Context) (*streams, error) {
	s := new(streams)
	var err error
	if s.stdio.Stdin, err = r.openStdin(ctx, s); err == nil {
		s.stdio.Stdout, err = r.openOutput(ctx, s, "stdout")
	}
	if err == nil {
		s.stdio.Stderr, err = r.openOutput(ctx, s, "stderr")
	}
	if err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	return s, nil
}

// outputCopy moves what the container writes into the log collection.
type outputCopy struct {
	from *os.File
	to   *joblog.Stream
	done chan error
}

// openOutput connects the stream called name to the log collection, or to a file
// in the output directory, and returns the container's end.
func (r *run) openOutput(ctx context.Context, s *streams, name string) (*os.File, error) {
	file := r.inputs.plan.Stdout
	if name == "stderr" {
		file = r.inputs.plan.Stderr
	}
	if file != nil {
		f, err := r.createOutputFile(ctx, file)
		if err != nil {
			return nil, cancelled(err)
		}
		s.given = append(s.given, f)
		return f, nil
	}
	opts := joblog.StreamOptions{Stamp: true}
	if r.Observer != nil {
		opts.Tee = r.Observer.Output(name)
	}
	log, err := r.Log.Stream(name+".txt", opts)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := pipe(reading)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make pipe for %s: %w", name, err), log.Close())
	}
	s.given = append(s.given, theirs)
	c := &outputCopy{from: ours, to: log, done: make(chan error, 1)}
	s.out = append(s.out, c)
	go func() {
		err := copyOutput(log, ours)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.Log.Printf("%s is still open, in a process outside of the container; what that writes from now on is not saved", name)
		} else if err != nil {
			// Keep reading: the container must not be stopped by SIGPIPE, nor
			// hang, because its log cannot be written.
			_, _ = io.Copy(io.Discard, ours)
			c.done <- fmt.Errorf("save %s to the log: %w", name, err)
			return
		}
		c.done <- nil
	}()
	return theirs, nil
}

// copyBuffer is as much as is read from a pipe at once, and pipeSize as much as
// it holds, in bytes: a program that writes fast is not stopped after each 64 KiB.
const (
	copyBuffer = 256 << 10
	pipeSize   = 1 << 20
)

// copyOutput copies a pipe to its end, or to what is in it at its read deadline,
// which is the error then: the deadline may have passed while a Keep that was
// slow took the last of the output.
func copyOutput(to io.Writer, from *os.File) error {
	buf := make([]byte, copyBuffer)
	last := pipeSize // who still writes shall not go on for ever
	for {
		n, err := from.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && last > 0 {
			n, err = readReady(from, buf)
			last -= n
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
			continue
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readReady reads what is in a pipe of which the read deadline has passed.
func readReady(from *os.File, buf []byte) (n int, err error) {
	conn, err := from.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	if err := conn.Control(func(fd uintptr) { n, readErr = unix.Read(int(fd), buf) }); err != nil {
		return 0, err
	}
	switch {
	case errors.Is(readErr, unix.EAGAIN):
		return 0, os.ErrDeadlineExceeded
	case readErr != nil:
		return 0, os.NewSyscallError("read", readErr)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// finish waits for the end of the copy. When it takes too long although there is
// nothing more to read, Keep does not take the log; closing the stream then
// releases the writer, and says what was lost.
func (c *outputCopy) finish(ctx context.Context) error {
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return errors.Join(c.to.Close(), <-c.done)
	}
}

// inputCopy feeds the container's stdin.
type inputCopy struct {
	to     *os.File
	cancel context.CancelFunc
	done   chan error
}

// openStdin gives the container its input: nothing, the text of a json mount,
// or a file read straight from Keep.
func (r *run) openStdin(ctx context.Context, s *streams) (*os.File, error) {
	// Feeding goes on while the container runs, beyond this step's context.
	feedCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	src, err := r.inputs.plan.OpenStdin(feedCtx, r.inputs.from)
	if err != nil {
		cancel()
		return nil, cancelled(err)
	}
	if src == nil {
		cancel()
		f, err := os.Open(os.DevNull)
		if err != nil {
			return nil, fmt.Errorf("open stdin: %w", err)
		}
		s.given = append(s.given, f)
		return f, nil
	}
	ours, theirs, err := pipe(writing)
	if err != nil {
		cancel()
		_ = src.Close()
		return nil, fmt.Errorf("make pipe for stdin: %w", err)
	}
	s.given = append(s.given, theirs)
	in := &inputCopy{to: ours, cancel: cancel, done: make(chan error, 1)}
	s.in = in
	go func() {
		_, err := io.Copy(ours, src)
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, os.ErrClosed), feedCtx.Err() != nil:
			err = nil // a program need not read all of its input
		case err != nil:
			err = fmt.Errorf("feed stdin: %w", err)
		}
		_ = ours.Close()
		_ = src.Close()
		in.done <- err
	}()
	return theirs, nil
}

// closeGiven closes the container's ends in this process: while one is open
// here, its pipe has no end. To close a file of a new collection takes an answer
// of the FUSE server.
func (r *run) closeGiven(ctx context.Context, s *streams) error {
	given := s.given
	s.given = nil
	if !r.inputs.plan.OutputIsCollection {
		return closeFiles(given)
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	_, err := onMount(ctx, r, func() (struct{}, error) { return struct{}{}, closeFiles(given) }, func(struct{}) {})
	return err
}

func closeFiles(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// close reads the output to its end, ends the input, and returns what went wrong
// on the way. The container has ended, or was never made. A second close does
// nothing.
func (s *streams) close(ctx context.Context) error {
	errs := []error{closeFiles(s.given)}
	deadline := time.Now().Add(drainTimeout)
	for _, c := range s.out {
		errs = append(errs, c.from.SetReadDeadline(deadline))
	}
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	for _, c := range s.out {
		errs = append(errs, c.finish(ctx), c.from.Close(), c.to.Close())
	}
	if s.in != nil {
		s.in.cancel()
		_ = s.in.to.Close()
		errs = append(errs, <-s.in.done)
	}
	*s = streams{}
	return errors.Join(errs...)
}

type direction int

const (
	reading direction = iota // we read, the container writes
	writing
)

// pipe makes a pipe. Our end is non-blocking, for deadlines; the container's is
// not, because the flag is shared by all who have it and programs do not expect
// EAGAIN from their standard streams.
func pipe(d direction) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	// It is an optimisation, which a node may have no room for.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	our, their := fds[0], fds[1]
	if d == writing {
		our, their = their, our
	}
	if err := unix.SetNonblock(our, true); err != nil {
		_ = unix.Close(our)
		_ = unix.Close(their)
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(our), "pipe"), os.NewFile(uintptr(their), "pipe"), nil
}
