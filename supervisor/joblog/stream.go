package joblog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// StreamOptions say what happens to the bytes of a stream on their way.
type StreamOptions struct {
	// Stamp puts a time stamp before every line of the file.
	Stamp bool
	// Redact takes secrets out of every line, which is then passed on only when
	// it is whole. Not for what users' programs write.
	Redact bool
	// Filter makes what stands before the file, and passes on to w what is for
	// the file. It is closed before the file ends.
	Filter func(w io.Writer) io.WriteCloser
	// Tee gets the bytes as they come, before the file does. Mirror gets what
	// the file gets, stamps included. Their errors are ignored: a terminal that
	// has gone must not cost a line of the log.
	Tee    io.Writer
	Mirror io.Writer
}

// Stream is one file of the log collection while it is being written. Write may
// be called from several goroutines; it blocks while Keep is too slow to keep
// up, so that memory stays bounded and nothing is lost.
type Stream struct {
	name  string
	put   func([]byte) error // into the tree
	tee   io.Writer
	copy  io.Writer
	stamp *stamper
	// redact is nil, or takes secrets out of a line.
	redact func(string) string
	whole  lines // for redact
	// filter is nil, or stands before redact.
	filter io.WriteCloser

	end     sync.Once
	closing chan struct{} // closed by Close

	mu     sync.Mutex
	state  streamState
	failed error
}

type streamState int

const (
	streamOpen    streamState = iota
	streamClosed              // by its owner: writing is a mistake
	streamDropped             // by the end of the log: writing is in vain
)

// Stream creates a file of the log collection. There is one stream per file.
func (l *Log) Stream(name string, o StreamOptions) (*Stream, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.streams == nil {
		return nil, fmt.Errorf("log file %s: %w", name, ErrClosed)
	}
	if l.streams[name] != nil {
		return nil, fmt.Errorf("log file %s exists already", name)
	}
	if err := l.tree.Append(name, nil); err != nil {
		return nil, fmt.Errorf("create log file %s: %w", name, err)
	}
	s := &Stream{name: name, tee: o.Tee, copy: o.Mirror, closing: make(chan struct{})}
	s.put = func(p []byte) error { return l.append(name, p, l.closed, s.closing) }
	if o.Stamp {
		s.stamp = &stamper{now: l.now}
	}
	if o.Redact {
		s.redact = l.Redact
	}
	if o.Filter != nil {
		s.filter = o.Filter(writerFunc(s.accept))
	}
	l.streams[name] = s
	return s, nil
}

// Write appends p to the file. After [Log.Final] it does nothing: whoever still
// writes, say a process that is being killed, shall not fail for it.
func (s *Stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.state {
	case streamClosed:
		return 0, fmt.Errorf("write to log file %s: %w", s.name, ErrClosed)
	case streamDropped:
		if s.name == Messages {
			return 0, ErrClosed // Log.print knows what to do
		}
		return len(p), nil
	}
	if len(p) == 0 {
		return 0, nil
	}
	if s.tee != nil {
		s.tee.Write(p) //nolint:errcheck // see StreamOptions
	}
	accept := s.accept
	if s.filter != nil {
		accept = s.filter.Write
	}
	n, err := accept(p)
	if err != nil {
		err = fmt.Errorf("write to log file %s: %w", s.name, err)
		if s.failed == nil {
			s.failed = err
		}
	}
	return n, err
}

// accept takes what is for the file.
func (s *Stream) accept(p []byte) (int, error) {
	if s.redact == nil {
		return s.pass(p)
	}
	var err error
	s.whole.write(p, func(piece []byte, _ bool) { err = errors.Join(err, s.putRedacted(piece)) })
	return len(p), err
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// pass appends p with time stamps, if the file has them.
func (s *Stream) pass(p []byte) (int, error) {
	if s.stamp != nil {
		return s.stamp.write(p, s.append)
	}
	if err := s.append(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *Stream) putRedacted(line []byte) error {
	_, err := s.pass([]byte(s.redact(string(line))))
	return err
}

// flush passes on an unterminated last line.
func (s *Stream) flush() {
	if s.filter != nil {
		if err := s.filter.Close(); err != nil && s.failed == nil {
			s.failed = err
		}
	}
	s.whole.rest(func(piece []byte, _ bool) {
		if err := s.putRedacted(piece); err != nil && s.failed == nil {
			s.failed = err
		}
	})
}

func (s *Stream) append(p []byte) error {
	if s.copy != nil {
		s.copy.Write(p) //nolint:errcheck // see StreamOptions
	}
	return s.put(p)
}

// Close ends the stream and returns the first error it has met. A Write that
// waits for room gives up. Nothing is flushed: the next save does that.
func (s *Stream) Close() error {
	s.end.Do(func() { close(s.closing) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == streamOpen {
		s.flush()
		s.state = streamClosed
	}
	return s.failed
}

func (s *Stream) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == streamOpen {
		s.flush()
		s.state = streamDropped
	}
}

// lineSink is the supervisor's stderr, shared by several sources.
type lineSink struct {
	mu sync.Mutex
	w  io.Writer
}

// lines writes p, whole lines each below prefix, in one go.
func (s *lineSink) lines(prefix string, p []byte) {
	var out []byte
	if prefix == "" {
		out = p
	} else {
		for line := range bytes.Lines(p) {
			out = append(append(out, prefix...), line...)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w.Write(out) //nolint:errcheck // there is nowhere left to complain
}

// lineAssembler passes whole lines on to a sink; an overlong one in pieces.
type lineAssembler struct {
	mu    sync.Mutex
	sink  *lineSink
	parts lines
}

func (a *lineAssembler) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.parts.write(p, func(piece []byte, _ bool) { a.sink.lines("", piece) })
	return len(p), nil
}
