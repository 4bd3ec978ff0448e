package keep

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// FilePart is a part of a local file that is to become a block. Offset and Length
// are in bytes.
type FilePart struct {
	File   *os.File
	Offset int64
	Length int64
}

// Size is the part's length in bytes.
func (p FilePart) Size() int64 { return p.Length }

// ReadAt implements io.ReaderAt within the part.
func (p FilePart) ReadAt(b []byte, off int64) (int, error) {
	if off >= p.Length {
		return 0, io.EOF
	}
	rest := p.Length - off
	n, err := p.File.ReadAt(b[:min(int64(len(b)), rest)], p.Offset+off)
	if err == nil && int64(n) == rest && n < len(b) {
		err = io.EOF
	}
	return n, err
}

// ErrUnreadable says that a FilePart could not be read, or not to its end: no
// service is at fault, and no other would help.
var ErrUnreadable = errors.New("what is to be stored cannot be read")

// content is what a request sends: memory or a FilePart.
type content interface {
	io.ReaderAt
	// Size is in bytes.
	Size() int64
}

type memory []byte

// Size is the number of bytes.
func (m memory) Size() int64 { return int64(len(m)) }

// ReadAt implements io.ReaderAt.
func (m memory) ReadAt(b []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	return copy(b, m[off:]), nil
}

// sentBodies makes the bodies of a request, which may be sent more than once,
// and counts those that the transport still holds.
type sentBodies struct {
	content content
	dog     *watchdog
	open    sync.WaitGroup
	last    *sentBody // the latest that was made; not used by the transport's goroutines

	mu     sync.Mutex
	failed error // of reading the content
}

func (s *sentBodies) reader() io.ReadCloser {
	s.open.Add(1)
	s.last = &sentBody{sentBodies: s, closed: s.open.Done}
	return s.last
}

// whole waits until the transport has ceased to send, and tells whether the latest
// body went out to its end.
func (s *sentBodies) whole() bool {
	s.open.Wait()
	return s.last == nil || s.last.pos == s.content.Size()
}

// err returns why the content could not be read, or nil.
func (s *sentBodies) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// sentBody is a request body that does not touch its content once it is closed.
type sentBody struct {
	*sentBodies

	mu     sync.Mutex // the transport may close while it reads
	pos    int64
	closed func() // nil once called
}

func (b *sentBody) Read(p []byte) (int, error) {
	return b.step(func() (int, error) {
		n, err := b.content.ReadAt(p[:min(int64(len(p)), b.content.Size()-b.pos)], b.pos)
		if err != nil && err != io.EOF {
			return n, fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
		return n, nil
	})
}

// step sends something, as many bytes from pos on as do says.
func (b *sentBody) step(do func() (int, error)) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed == nil {
		return 0, fs.ErrClosed
	}
	if b.pos >= b.content.Size() {
		return 0, io.EOF
	}
	n, err := do()
	b.pos += int64(n)
	b.dog.progress(n)
	if n == 0 && err == nil {
		err = fmt.Errorf("%w: %w", ErrUnreadable, io.ErrUnexpectedEOF)
	}
	if errors.Is(err, ErrUnreadable) {
		b.sentBodies.mu.Lock()
		b.failed = err
		b.sentBodies.mu.Unlock()
	}
	return n, err
}

func (b *sentBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		b.closed()
		b.closed = nil
	}
	return nil
}

// sendStep is how much is handed to the kernel at once, in bytes.
const sendStep = 1 << 20

// sendTo sends at most limit bytes without a copy in this process: from memory
// as they lie there, from a file's cached pages by the kernel (sendfile(2)).
func (b *sentBody) sendTo(conn *net.TCPConn, limit int64) (sent int64, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	for sent < limit {
		n, err := b.step(func() (int, error) {
			most := min(limit-sent, b.content.Size()-b.pos, sendStep)
			switch from := b.content.(type) {
			case memory:
				return conn.Write(from[b.pos : b.pos+most])
			case FilePart:
				return sendfile(raw, from, b.pos, int(most))
			}
			return 0, errNoSendfile
		})
		sent += int64(n)
		switch {
		case err == io.EOF:
			return sent, nil
		case errors.Is(err, errNoSendfile):
			// The ordinary way tells the file's errors from the connection's.
			n, err := io.Copy(struct{ io.Writer }{conn}, io.LimitReader(b, limit-sent))
			return sent + n, err
		case err != nil:
			return sent, err
		}
	}
	return sent, nil
}

// errNoSendfile says that the file system does not offer it, or that it failed:
// because of the file or of the connection.
var errNoSendfile = errors.New("no sendfile")

// sendfile sends at most want bytes of part from off on. None, without an error,
// is the end of the file.
func sendfile(conn syscall.RawConn, part FilePart, off int64, want int) (n int, err error) {
	off += part.Offset
	waitErr := conn.Write(func(fd uintptr) bool {
		for {
			n, err = unix.Sendfile(int(fd), int(part.File.Fd()), &off, want)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	switch {
	case waitErr != nil:
		return max(n, 0), waitErr
	case err != nil:
		return 0, errNoSendfile
	}
	return n, nil
}

// conn is a connection over which request bodies go without a copy in between.
type conn struct{ *net.TCPConn }

// ReadFrom implements io.ReaderFrom: package http calls it with the body.
func (c conn) ReadFrom(r io.Reader) (int64, error) {
	if limited, ok := r.(*io.LimitedReader); ok {
		if body, ok := limited.R.(*sentBody); ok {
			n, err := body.sendTo(c.TCPConn, limited.N)
			limited.N -= n
			return n, err
		}
	}
	return c.TCPConn.ReadFrom(r)
}
