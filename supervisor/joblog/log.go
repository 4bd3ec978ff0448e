package joblog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"crunch-oci/internal/redact"
)

// Messages is the file of the supervisor's own messages.
const Messages = "crunch-run.txt"

// Tree is a collection that grows in memory and in Keep; see [InCollection]. It
// may be used from several goroutines.
type Tree interface {
	// Append adds p, which it must not keep, to the end of a file at the top
	// level. The first Append creates the file, also with nothing to add. It
	// may block while Keep is slow. It adds all of p, or nothing and returns
	// an error. One that wraps ErrFull is not final: after MarshalManifest has
	// found Keep working again there will be room.
	Append(name string, p []byte) error
	// Size is the total of all file sizes, in bytes.
	Size() int64
	// MarshalManifest writes everything to Keep, short blocks too, and returns
	// the manifest of what was there when it was called.
	MarshalManifest(ctx context.Context) (string, error)
}

var (
	// ErrClosed is returned for a file wanted after [Log.Final].
	ErrClosed = errors.New("the log collection is closed")
	// ErrFull is a Tree's way to say that it holds as much as it may.
	ErrFull = errors.New("too much log data is waiting for Keep")
)

// Config is what a Log needs.
type Config struct {
	UUID  string // of the container
	Tree  Tree
	Saver Saver
	// Stderr gets a copy of every message; nil means nowhere. It may be slow,
	// it may fail.
	Stderr io.Writer
	// Period and Growth say when a changed log is saved: so long after the last
	// time, or when it has grown by so many bytes. Zero means 30 min, 32 MiB.
	Period time.Duration
	Growth int64
	// Now is the clock of the time stamps; nil means time.Now.
	Now func() time.Time
}

// Log is the log collection of one container. It may be used from several
// goroutines.
type Log struct {
	redact.Redactor

	tree   Tree
	stderr *lineSink
	prefix string // of messages on stderr
	now    func() time.Time

	messageMu sync.Mutex // one message at a time
	messages  *Stream
	backlog   backlog
	onlyErr   stamper // for messages after the end of the file

	mu      sync.Mutex
	streams map[string]*Stream
	closed  chan struct{} // closed when nothing more is taken
	room    chan struct{} // closed, and replaced, when there may be room again

	saver *saver
}

// New starts a log collection with an empty crunch-run.txt.
func New(c Config) (*Log, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Stderr == nil {
		c.Stderr = io.Discard
	}
	l := &Log{
		tree:    c.Tree,
		stderr:  &lineSink{w: c.Stderr},
		prefix:  c.UUID + " ",
		now:     c.Now,
		onlyErr: stamper{now: c.Now},
		streams: make(map[string]*Stream),
		closed:  make(chan struct{}),
		room:    make(chan struct{}),
		saver:   newSaver(c),
	}
	var err error
	l.messages, err = l.Stream(Messages, StreamOptions{Stamp: true, Mirror: messageSink{l}})
	if err != nil {
		return nil, err
	}
	// Messages are given up later than everything else: see Final.
	l.backlog.put = func(p []byte) error { return l.append(Messages, p, l.saver.finished, nil) }
	l.backlog.end = l.closed
	l.messages.put = func(p []byte) error { l.backlog.add(p); return nil }
	return l, nil
}

// Printf logs a message of the supervisor, in crunch-run.txt and on stderr. A
// message of several lines gets a time stamp on each. Secrets are taken out. It
// does not wait for Keep, or hardly.
func (l *Log) Printf(format string, args ...any) {
	l.messageMu.Lock()
	defer l.messageMu.Unlock()
	l.print(fmt.Sprintf(format, args...))
}

func (l *Log) print(message string) {
	text := []byte(strings.TrimRight(l.Redact(message), "\n") + "\n")
	if _, err := l.messages.Write(text); errors.Is(err, ErrClosed) {
		l.onlyErr.write(text, messageSink{l}.write) //nolint:errcheck // it has none
	}
}

// Lines returns a writer for the output of a helper command: each line becomes
// a message. Close adds an unterminated last line.
func (l *Log) Lines() io.WriteCloser { return &messageLines{log: l} }

// Stderr returns a writer to the supervisor's stderr that passes on whole lines
// only, so that the lines of several sources do not run into each other. Each
// source needs its own.
func (l *Log) Stderr() io.Writer { return &lineAssembler{sink: l.stderr} }

// Size is the total size of the files, in bytes.
func (l *Log) Size() int64 { return l.tree.Size() + l.backlog.size() }

// WriteFile adds a file that is written at once, such as node.json.
func (l *Log) WriteFile(name string, data []byte) error {
	s, err := l.Stream(name, StreamOptions{})
	if err != nil {
		return err
	}
	if _, err := s.Write(data); err != nil {
		return err
	}
	return s.Close()
}

// close ends every file, with last as the last message. What is written later
// is dropped; messages still go to stderr.
func (l *Log) close(last string) {
	l.mu.Lock()
	streams := l.streams
	l.streams = nil
	if streams != nil {
		close(l.closed) // those who wait for room give up, and their locks
	}
	l.mu.Unlock()
	if streams == nil {
		return
	}
	l.messageMu.Lock()
	defer l.messageMu.Unlock()
	l.print(last)
	for _, s := range streams {
		s.drop()
	}
}

// retryFull is how often somebody who waits for room tries again.
const retryFull = 5 * time.Second

// append adds p to a file. While the tree is full it waits, and has it saved,
// since that makes room, until one of the channels is closed.
func (l *Log) append(name string, p []byte, end, closing <-chan struct{}) error {
	for {
		l.mu.Lock()
		room := l.room
		l.mu.Unlock()
		err := l.tree.Append(name, p)
		if !errors.Is(err, ErrFull) {
			return err
		}
		poke(l.saver.needed)
		t := time.NewTimer(retryFull)
		select {
		case <-t.C:
		case <-room:
			t.Stop()
		case <-end:
			t.Stop()
			return err
		case <-closing:
			t.Stop()
			return err
		}
	}
}

// marshal flushes the tree, and wakes those who wait for room.
func (l *Log) marshal(ctx context.Context) (string, error) {
	manifest, err := l.tree.MarshalManifest(ctx)
	if err == nil {
		l.mu.Lock()
		close(l.room)
		l.room = make(chan struct{})
		l.mu.Unlock()
	}
	return manifest, err
}

// messageSink writes stamped messages to stderr, below the container's UUID.
type messageSink struct{ log *Log }

func (m messageSink) Write(p []byte) (int, error) { return len(p), m.write(p) }

func (m messageSink) write(p []byte) error {
	m.log.stderr.lines(m.log.prefix, p)
	return nil
}

// messageLines turns lines into messages.
type messageLines struct {
	log   *Log
	lines lines
}

func (m *messageLines) Write(p []byte) (int, error) {
	m.lines.write(p, m.message)
	return len(p), nil
}

func (m *messageLines) Close() error {
	m.lines.rest(m.message)
	return nil
}

func (m *messageLines) message(piece []byte, _ bool) { m.log.Printf("%s", piece) }
