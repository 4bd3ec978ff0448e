package keep_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"crunch-oci/keep"
)

// Files and directories cross between two collections while they are written to
// and the collections are stored; no byte of them is lost.
func TestMoveCrossing(t *testing.T) {
	check := func(err error) {
		if err != nil {
			t.Error(err)
			runtime.Goexit()
		}
	}
	store := newMemStore()
	cols := make([]*keep.Collection, 2)
	for i := range cols {
		c, err := keep.NewCollection("", store)
		check(err)
		c.SetBlockSize(1000)
		if i > 0 {
			c.Join(cols[0])
		}
		cols[i] = c
		defer c.Close()
	}
	const files, steps = 4, 400
	ctx := context.Background()
	var wg sync.WaitGroup
	want := make([]strings.Builder, files)
	for i := range files {
		wg.Go(func() {
			rnd := rand.New(rand.NewSource(int64(i)))
			at, name := cols[i%2].Root(), fmt.Sprint("d", i)
			dir, err := at.Mkdir(name)
			check(err)
			n, err := dir.Create("f")
			check(err)
			f, err := n.Open(os.O_RDWR)
			check(err)
			defer f.Close()
			gone, err := dir.Create("gone")
			check(err)
			unlinked, err := gone.Open(os.O_RDWR)
			check(err)
			defer unlinked.Close()
			check(dir.Remove("gone", false))
			for step := range steps {
				text := strings.Repeat(fmt.Sprintf("%d %d\n", i, step), rnd.Intn(40)+1)
				_, err := f.Append([]byte(text))
				check(err)
				want[i].WriteString(text)
				_, err = unlinked.WriteAt([]byte(text), 0)
				check(err)
				if rnd.Intn(3) == 0 {
					to := cols[rnd.Intn(2)].Root()
					check(at.Rename(ctx, name, to, name, true))
					at = to
				}
				if rnd.Intn(50) == 0 {
					_, err := at.Collection().MarshalManifest(ctx)
					check(err)
				}
			}
			if at.Collection().Orphans() == 0 {
				t.Error("a removed file that is open did not go along")
			}
		})
	}
	wg.Wait()
	var size, total int64
	for _, c := range cols {
		manifest, err := c.MarshalManifest(ctx)
		check(err)
		stored, err := keep.NewCollection(manifest, store)
		check(err)
		if stored.Size() != c.Size() {
			t.Errorf("size %d, stored %d", c.Size(), stored.Size())
		}
		total += c.Size()
		for i := range files {
			name := fmt.Sprintf("d%d/f", i)
			if _, err := stored.Stat(name); err == nil {
				if got := readFile(t, stored, name); got != want[i].String() {
					t.Errorf("%s: %d bytes, want %d", name, len(got), want[i].Len())
				}
			}
		}
		if n := c.Orphans(); n != 0 {
			t.Errorf("%d removed files are still held", n)
		}
	}
	for i := range want {
		size += int64(want[i].Len())
	}
	if total != size {
		t.Errorf("%d bytes are there, want %d", total, size)
	}
}

// A collection whose uploads fail takes no more data in memory than its own
// writers may give it.
func TestMoveIsBounded(t *testing.T) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	away := newMemStore()
	one, err := keep.NewCollection("", newMemStore())
	check(err)
	defer one.Close()
	other, err := keep.NewCollection("", away)
	check(err)
	defer other.Close()
	other.Join(one)
	one.SetBlockSize(1000)
	other.SetBlockSize(1000)
	away.setFail(errFlaky)
	f, err := other.Create("f")
	check(err)
	_, err = f.Append(make([]byte, 1000))
	check(err)
	other.WaitUploads()
	for i := 0; ; i++ {
		name := fmt.Sprint(i)
		n, err := one.Root().Create(name)
		check(err)
		f, err := n.Open(os.O_RDWR)
		check(err)
		_, err = f.Append(make([]byte, 900))
		check(err)
		check(f.Close())
		err = one.Root().Rename(context.Background(), name, other.Root(), name, true)
		if err == nil && i < 100 {
			continue
		}
		if !errors.Is(err, errFlaky) || i == 0 {
			t.Errorf("file %d: %v", i, err)
		}
		if !n.Linked() || n.Collection() != one {
			t.Error("it is not where it was")
		}
		break
	}
}

func TestMoveNotJoined(t *testing.T) {
	a, err := keep.NewCollection("", newMemStore())
	if err != nil {
		t.Fatal(err)
	}
	b, err := keep.NewCollection("", newMemStore())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Root().Rename(context.Background(), "x", b.Root(), "x", true); !errors.Is(err, syscall.EXDEV) {
		t.Error(err)
	}
}
