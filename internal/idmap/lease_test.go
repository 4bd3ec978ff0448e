package idmap

import (
	"errors"
	"os"
	"path/filepath"
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
	if err := errors.Join(c.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
}
