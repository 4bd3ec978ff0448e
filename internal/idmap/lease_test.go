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
	// Or to ranges that only share ids with those that are in use, or to a single one
	// for all containers.
	for _, other := range []Range{{130_000, 65536}, {90_000, 65536}, {100_000, 70_000}, {65_536, 200_000}} {
		if l, err := other.Take(dir, 1, filepath.Join(runs, "c")); !errors.Is(err, ErrTaken) {
			t.Errorf("%+v: %v, %v", other, l, err)
		}
		if l, err := other.Share(dir); !errors.Is(err, ErrTaken) {
			t.Errorf("%+v, shared: %v, %v", other, l, err)
		}
	}
	if l, err := (Range{130_000, 65536}).Take(dir, 3, filepath.Join(runs, "c")); err != nil || l.Range != (Range{261_072, 65536}) {
		t.Errorf("the first after those in use: %+v, %v", l, err)
	} else if err := l.Close(); err != nil {
		t.Fatal(err)
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

// A range that containers share is theirs until the last of them ends.
func TestShare(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ids")
	r := Range{First: 100_000, Count: 65536}
	a, err := r.Share(dir)
	b, err2 := r.Share(dir)
	wider, err3 := Range{100_000, 131_072}.Share(dir)
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Lease{a, b, wider} {
		if got, err := (Range{165_535, 65536}).Take(dir, 1, "/no/such"); !errors.Is(err, ErrTaken) {
			t.Errorf("got %+v, %v", got, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Range{165_535, 65536}.Take(dir, 1, "/no/such")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
