package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/hostdir"
	"crunch-oci/keep"
)

const (
	// readAheadFiles files are read ahead of the one being written, as many
	// at a time as there are readers; of each at most readAheadBytes, so that
	// this bounds memory to 64 MiB.
	readAheadFiles = 64
	readAheadBytes = 1 << 20
	// copyBuffer is the size of reads from the rest of a longer file, in bytes.
	copyBuffer = 1 << 20
)

// copyFiles copies files from the host directory into out. Several are read at
// a time, because small files are slow to open on network file systems, but
// they are written one by one, in order, so that the result is the same always.
//
// What fills blocks of its own is not written by this goroutine, see parts.
func copyFiles(ctx context.Context, host *hostdir.Dir, files []file, out *keep.Collection, log Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	parts := newParts(ctx, out, cancel)
	work := make(chan *head)                  // unordered, to the readers
	order := make(chan *head, readAheadFiles) // to the writer
	readers := min(8, 2*runtime.GOMAXPROCS(0), len(files))
	ended := make(chan struct{}, readers+1)
	for range readers {
		go func() {
			for h := range work {
				h.read(host, out.WritesParts())
				close(h.done)
				parts.store(ctx, h.parts)
			}
			ended <- struct{}{}
		}()
	}
	go func() {
		defer func() { close(work); close(order); ended <- struct{}{} }()
		for _, f := range files {
			h := &head{file: f, done: make(chan struct{})}
			select {
			case order <- h:
			case <-ctx.Done():
				return
			}
			// Unconditionally: whoever takes h from order waits for it.
			work <- h
		}
	}()
	// In every case wait for the goroutines, and close what they opened.
	defer func() {
		cancel(nil)
		for h := range order {
			<-h.done
			h.close()
		}
		for range readers + 1 {
			<-ended
		}
		parts.close()
	}()

	buf := make([]byte, copyBuffer)
	for h := range order {
		<-h.done
		err := ctx.Err()
		if err == nil {
			log.Printf("copying %q (%d bytes)", h.dest, h.size)
			err = h.write(ctx, out, buf)
		}
		h.close()
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if err != nil {
			return copyError(h.dest, err)
		}
	}
	return context.Cause(ctx)
}

func copyError(dest string, err error) error {
	return fmt.Errorf("error copying file %q into output collection: %w", dest, err)
}

// head is a file with its beginning, read ahead.
type head struct {
	file
	done chan struct{} // closed when read has returned

	parts []*part  // the beginning, if it is stored without being read here
	data  []byte   // else the beginning
	rest  *os.File // what follows, nil if that is all
	err   error
}

// read fills h. A file that grows is read to its end all the same.
func (h *head) read(host *hostdir.Dir, inParts bool) {
	if h.host == "" {
		return
	}
	f, err := openRegular(host, h.host)
	if err != nil {
		h.err = err
		return
	}
	if inParts {
		if h.parts = partsOf(f, h.dest); h.parts != nil {
			h.rest = f
			return
		}
	}
	// One byte more than expected, to see the end with the first read.
	buf := make([]byte, max(0, min(h.size, readAheadBytes))+1)
	n, err := io.ReadFull(f, buf)
	h.data = buf[:n]
	switch err {
	case nil:
		h.rest = f
		return
	case io.EOF, io.ErrUnexpectedEOF:
	default:
		h.err = err
	}
	f.Close()
}

func (h *head) close() {
	for _, p := range h.parts {
		<-p.done
	}
	if h.rest != nil {
		h.rest.Close()
		h.rest = nil
	}
}

// openRegular opens a regular file and nothing else: O_NONBLOCK keeps a FIFO
// that has taken its place from blocking.
func openRegular(host *hostdir.Dir, name string) (*os.File, error) {
	f, err := host.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("no longer a regular file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (h *head) write(ctx context.Context, out *keep.Collection, buf []byte) error {
	if h.err != nil {
		return h.err
	}
	if err := out.MkdirAll(path.Dir(h.dest)); err != nil {
		return invalidOperation(err)
	}
	w, err := out.Create(h.dest)
	if err != nil {
		return invalidOperation(err)
	}
	defer w.Close()
	if _, err := w.Write(h.data); err != nil {
		return err
	}
	if h.rest == nil {
		return nil
	}
	off := int64(len(h.data))
	for _, p := range h.parts {
		<-p.done
		if p.again {
			break
		}
		if p.err != nil {
			return p.err
		}
		if err := w.AppendBlock(p.loc); err != nil {
			return err
		}
		off += p.Length
	}
	if _, err := h.rest.Seek(off, io.SeekStart); err != nil {
		return err
	}
	holes := newHoles(h.rest)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, err := holes.skip(off)
		if err != nil {
			return err
		}
		if next > off {
			if err := w.Truncate(next); err != nil {
				return err
			}
		}
		n, err := h.rest.Read(buf)
		off = next + int64(n)
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// invalidOperation says in the reference's words that a file and a directory
// want the same name, as when the parent directory of a mount was replaced by a
// file.
func invalidOperation(err error) error {
	if errors.Is(err, syscall.EISDIR) || isNotDir(err) {
		return fmt.Errorf("invalid operation: a mount and a file want the same place: %w", err)
	}
	return err
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
