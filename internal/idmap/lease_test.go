package idmap

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTake(t *testing.T) {
	dir, runs := filepath.Join(t.TempDir(), "ids"), t.TempDir()
	first := Range{First: 100_000, Count: 65536}
	take := func(run string, want uint32) *Lease {
		t.Helper()
		l, err := first.Take(dir, 2, filepath.Join(runs, run))
		if want == 0 {
			if !errors.Is(err, ErrTaken) {
				t.Fatalf("%v, %v", l, err)
			}
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if l.Range != (Range{want, 65536}) {
			t.Errorf("got %+v, want %d", l.Range, want)
		}
		return l
	}
	a := take("a", 100_000)
	b := take("b", 165_536)
	take("c", 0)
	// The setting is changed meanwhile: what was the second range is now the first.
	if l, err := (Range{First: 165_536, Count: 65536}).Take(dir, 1, filepath.Join(runs, "c")); !errors.Is(err, ErrTaken) {
		t.Errorf("after a change: %v, %v", l, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	c := take("c", 100_000)
	// A borrower dies, and leaves something behind; nobody but its like gets the range
	// until that is gone.
	remains := filepath.Join(runs, "b")
	if err := errors.Join(os.Mkdir(remains, 0o700), b.file.Close()); err != nil {
		t.Fatal(err)
	}
	take("d", 0)
	if err := take("b", 165_536).file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(remains); err != nil {
		t.Fatal(err)
	}
	d := take("d", 165_536)
	if err := os.Chown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if l, err := first.Take(dir, 2, filepath.Join(runs, "e")); err == nil || !strings.Contains(err.Error(), dir+" is not a directory that only user") {
		t.Errorf("from a directory of others: %v, %v", l, err)
	}
	if err := errors.Join(c.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
}
