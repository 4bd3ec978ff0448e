package supervisor

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"
)

// slowWriter is a log whose Keep takes the first write only when it is told to.
type slowWriter struct {
	bytes.Buffer
	entered, goOn chan struct{}
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if w.Len() == 0 {
		close(w.entered)
		<-w.goOn
	}
	return w.Buffer.Write(p)
}

// The time for the last of the output passes while Keep is slow: what is in the
// pipe by then is not lost, whether the pipe has an end or not.
func TestOutputBehindSlowKeep(t *testing.T) {
	for name, open := range map[string]bool{"closed": false, "held open from outside": true} {
		t.Run(name, func(t *testing.T) {
			ours, theirs, err := pipe(reading)
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			defer theirs.Close()
			log := &slowWriter{entered: make(chan struct{}), goOn: make(chan struct{})}
			done := make(chan error, 1)
			go func() { done <- copyOutput(log, ours) }()
			text := bytes.Repeat([]byte("0123456789abcde\n"), 60_000)
			if _, err := theirs.Write(text[:16]); err != nil {
				t.Fatal(err)
			}
			<-log.entered
			if _, err := theirs.Write(text[16:]); err != nil {
				t.Fatal(err)
			}
			want := error(nil)
			if open {
				want = os.ErrDeadlineExceeded
			} else if err := theirs.Close(); err != nil {
				t.Fatal(err)
			}
			if err := ours.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
				t.Fatal(err)
			}
			close(log.goOn)
			if err := <-done; !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
			if !bytes.Equal(log.Bytes(), text) {
				t.Errorf("%d bytes arrived of %d", log.Len(), len(text))
			}
		})
	}
}

// Somebody outside of the container who never stops writing is not read for ever.
func TestEndlessOutputFromOutside(t *testing.T) {
	ours, theirs, err := pipe(reading)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := ours.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		for line := []byte("chatter\n"); ; {
			if _, err := theirs.Write(line); err != nil {
				return
			}
		}
	}()
	if err := copyOutput(new(bytes.Buffer), ours); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	_ = ours.Close()
	<-written
}
