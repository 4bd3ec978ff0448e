package joblog

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// While Keep is unreachable a writer waits; when it is back nothing is missing
// and nothing is there twice.
func TestWriterWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tree, rec, _ := newTestLog(t, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)
		out, err := l.Stream("stdout.txt", StreamOptions{Stamp: true})
		if err != nil {
			t.Fatal(err)
		}
		tree.set(func() { tree.full, tree.flushErr = true, errTest })
		written := make(chan error, 1)
		go func() {
			_, err := io.WriteString(out, "one\ntwo\n")
			written <- err
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		select {
		case err := <-written:
			t.Fatalf("did not wait: %v", err)
		default:
		}
		tree.set(func() { tree.flushErr = nil })
		time.Sleep(retryFull + time.Second)
		synctest.Wait()
		select {
		case err := <-written:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Fatal("still waits although Keep is back")
		}
		if got := unstamp(t, tree.file("stdout.txt")); got != "one\ntwo\n" {
			t.Errorf("file %q", got)
		}
		if len(rec.take()) == 0 {
			t.Error("nothing was saved")
		}
		// The failed saves are mentioned, in order, once there is room.
		if n := strings.Count(tree.file(Messages), "error updating log collection: write log data to Keep: no luck\n"); n == 0 {
			t.Error("no word about the failed saves")
		}
	})
}

// The supervisor goes on while Keep is stuck, and says what it does.
func TestMessagesDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tree, _, stderr := newTestLog(t, Config{})
		tree.set(func() { tree.full = true })
		start := time.Now()
		for range 100 {
			l.Printf("caught signal: terminated")
		}
		if d := time.Since(start); d > 2*patience {
			t.Errorf("took %v", d)
		}
		if n := strings.Count(stderr.String(), "\n"); n != 100 {
			t.Errorf("%d lines on stderr", n)
		}
		if _, err := l.Save(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := strings.Count(tree.file(Messages), "\n"); n != 100 {
			t.Errorf("%d lines in the file", n)
		}
	})
}

// The last line is in the last save even if there was no room for it at first.
func TestFinalMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tree, rec, _ := newTestLog(t, Config{})
		tree.set(func() { tree.full = true })
		if _, err := l.Final(t.Context(), "Complete"); err != nil {
			t.Fatal(err)
		}
		if got := tree.file(Messages); !strings.HasSuffix(got, "Z Complete\n") {
			t.Errorf("messages %q", got)
		}
		if got := rec.take(); len(got) != 1 || strings.Contains(got[0], Messages+"=0") {
			t.Errorf("requests %s", got)
		}
	})
}

// Final ends every wait, whatever Keep does.
func TestFinalReleasesWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tree, _, _ := newTestLog(t, Config{})
		out, err := l.Stream("stdout.txt", StreamOptions{})
		if err != nil {
			t.Fatal(err)
		}
		tree.set(func() { tree.full, tree.flushErr = true, errTest })
		written, messages := make(chan error, 1), make(chan struct{})
		go func() { _, err := io.WriteString(out, "x"); written <- err }()
		go func() {
			l.messages.Write(make([]byte, maxBacklog+1))
			l.Printf("more than the backlog takes")
			close(messages)
		}()
		synctest.Wait()
		if _, err := l.Final(t.Context(), "Cancelled"); !errors.Is(err, errTest) {
			t.Errorf("final save: %v", err)
		}
		if err := <-written; !errors.Is(err, ErrFull) {
			t.Errorf("write: %v", err)
		}
		<-messages
	})
}

// Whoever cannot wait for Keep any longer closes the stream.
func TestCloseReleasesWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tree, _, _ := newTestLog(t, Config{})
		out, err := l.Stream("stdout.txt", StreamOptions{})
		if err != nil {
			t.Fatal(err)
		}
		tree.set(func() { tree.full = true })
		written := make(chan error, 1)
		go func() { _, err := io.WriteString(out, "x"); written <- err }()
		synctest.Wait()
		if err := out.Close(); !errors.Is(err, ErrFull) {
			t.Errorf("close: %v", err)
		}
		if err := <-written; !errors.Is(err, ErrFull) {
			t.Errorf("write: %v", err)
		}
	})
}
