package joblog

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
)

func TestMessages(t *testing.T) {
	l, tree, _, stderr := newTestLog(t, Config{Now: ticking()})
	l.Hide("abcdefghijklmnop")
	l.Printf("Executing container: %s", testUUID)
	l.Printf("error in Run: one\ntwo\n")
	l.Printf("")
	l.Printf("token abcdefghijklmnop, 100%%")
	want := "2026-01-02T03:04:05.000000000Z Executing container: " + testUUID + "\n" +
		"2026-01-02T03:04:06.000000000Z error in Run: one\n" +
		"2026-01-02T03:04:06.000000001Z two\n" +
		"2026-01-02T03:04:07.000000000Z \n" +
		"2026-01-02T03:04:08.000000000Z token (hidden), 100%\n"
	if got := tree.file(Messages); got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	var onStderr strings.Builder
	for line := range strings.Lines(want) {
		onStderr.WriteString(testUUID + " " + line)
	}
	if got := stderr.String(); got != onStderr.String() {
		t.Errorf("stderr %q\nwant %q", got, onStderr.String())
	}
}

func TestLinesOfHelpersBecomeMessages(t *testing.T) {
	l, tree, _, _ := newTestLog(t, Config{Now: ticking()})
	w := l.Lines()
	io.WriteString(w, "one\ntw")
	io.WriteString(w, "o\nlast")
	w.Close()
	if got := unstamp(t, tree.file(Messages)); got != "one\ntwo\nlast\n" {
		t.Errorf("got %q", got)
	}
}

// What ended a process is often its last line, without an end.
func TestStreamFilterEnds(t *testing.T) {
	for name, end := range map[string]func(l *Log, s *Stream){
		"file": func(_ *Log, s *Stream) { _ = s.Close() },
		"log":  func(l *Log, _ *Stream) { _, _ = l.Final(t.Context(), "Complete") },
	} {
		l, tree, _, _ := newTestLog(t, Config{Now: ticking()})
		l.Hide("abcdefghijklmnop")
		s, err := l.Stream("keepstore.txt", StreamOptions{Redact: true, Filter: func(w io.Writer) io.WriteCloser { return &KeepstoreFilter{W: w} }})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(s, "{\"msg\":\"request\"}\nfatal: abcdefgh")
		io.WriteString(s, "ijklmnop")
		end(l, s)
		if got := tree.file("keepstore.txt"); got != "fatal: (hidden)" {
			t.Errorf("end of the %s: %q", name, got)
		}
	}
}

func TestStreamCopies(t *testing.T) {
	l, tree, _, stderr := newTestLog(t, Config{Now: ticking()})
	var tee strings.Builder
	mount, err := l.Stream("arv-mount.txt", StreamOptions{Stamp: true, Tee: &tee, Mirror: l.Stderr()})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(mount, "half ")
	l.Printf("message")
	io.WriteString(mount, "a line\nrest")
	if tee.String() != "half a line\nrest" {
		t.Errorf("tee %q", tee.String())
	}
	want := testUUID + " 2026-01-02T03:04:06.000000000Z message\n2026-01-02T03:04:05.000000000Z half a line\n"
	if got := stderr.String(); got != want {
		t.Errorf("stderr %q\nwant %q", got, want)
	}
	if got := unstamp(t, tree.file("arv-mount.txt")); got != "half a line\nrest" {
		t.Errorf("file %q", got)
	}
}

func TestBrokenCopiesDoNotHurt(t *testing.T) {
	l, tree, _, _ := newTestLog(t, Config{})
	s, err := l.Stream("stdout.txt", StreamOptions{Tee: failingWriter{}, Mirror: failingWriter{}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.WriteString(s, "x"); n != 1 || err != nil || tree.file("stdout.txt") != "x" {
		t.Errorf("%d, %v, %q", n, err, tree.file("stdout.txt"))
	}
}

func TestStreamsAndFiles(t *testing.T) {
	l, tree, _, _ := newTestLog(t, Config{})
	s, err := l.Stream("stderr.txt", StreamOptions{Stamp: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, there := tree.files["stderr.txt"]; !there {
		t.Error("no file before the first write")
	}
	if _, err := l.Stream("stderr.txt", StreamOptions{}); err == nil {
		t.Error("two streams for one file")
	}
	if err := l.WriteFile("node.json", []byte("{ \"a\": 1 }")); err != nil || tree.file("node.json") != "{ \"a\": 1 }" {
		t.Errorf("node.json: %v, %q", err, tree.file("node.json"))
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
}

func TestStreamErrorIsKeptForClose(t *testing.T) {
	l, tree, _, _ := newTestLog(t, Config{})
	s, err := l.Stream("stdout.txt", StreamOptions{Stamp: true})
	if err != nil {
		t.Fatal(err)
	}
	tree.addErr = errTest
	if _, err := s.Write([]byte("x")); !errors.Is(err, errTest) {
		t.Errorf("write: %v", err)
	}
	tree.addErr = nil
	if _, err := s.Write([]byte("y\n")); err != nil {
		t.Errorf("write: %v", err)
	}
	if err := s.Close(); !errors.Is(err, errTest) {
		t.Errorf("close: %v", err)
	}
}

func TestConcurrentWritersKeepTheirLines(t *testing.T) {
	l, tree, _, _ := newTestLog(t, Config{})
	s, err := l.Stream("arv-mount.txt", StreamOptions{Stamp: true})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				fmt.Fprintf(s, "writer %d line %d\n", i, j)
				l.Printf("message %d %d", i, j)
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"arv-mount.txt", Messages} {
		if n := strings.Count(unstamp(t, tree.file(name)), "\n"); n != 1600 {
			t.Errorf("%s has %d lines", name, n)
		}
	}
}
