package keep_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"path"
	"strings"
	"testing"

	"crunch-oci/keep"
)

// model is what a collection should look like: the content of each file, and nil
// for each directory.
type model map[string][]byte

func (m model) isDir(name string) bool {
	data, ok := m[name]
	return name == "." || ok && data == nil
}

func (m model) removeAll(name string) {
	for n := range m {
		if n == name || name == "." || strings.HasPrefix(n, name+"/") {
			delete(m, n)
		}
	}
}

// copyTree adds what is at src in from at dst.
func (m model) copyTree(dst string, from model, src string) {
	for n, data := range maps.Clone(from) {
		if n == src || src == "." {
			m[path.Join(dst, strings.TrimPrefix(n, src))] = data
		} else if rest, ok := strings.CutPrefix(n, src+"/"); ok {
			m[path.Join(dst, rest)] = data
		}
	}
	if src == "." && dst != "." {
		for n, data := range maps.Clone(from) {
			m[path.Join(dst, n)] = data
		}
		m[dst] = nil
	}
}

func (m model) size() (n int64) {
	for _, data := range m {
		n += int64(len(data))
	}
	return n
}

func (m model) check(t *testing.T, c *keep.Collection) {
	t.Helper()
	got := make(model)
	err := c.Walk("", func(name string, info keep.FileInfo) error {
		switch {
		case name == ".":
		case info.IsDir():
			got[name] = nil
		default:
			got[name] = append([]byte{}, readFile(t, c, name)...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprintf("%#v", got), fmt.Sprintf("%#v", m); a != b {
		t.Fatalf("collection\n%s\nwant\n%s", a, b)
	}
	if c.Size() != m.size() {
		t.Fatalf("size %d, want %d", c.Size(), m.size())
	}
}

// Any sequence of operations, with uploads that fail now and then, leaves the
// collection as the same operations leave a map; and so is what is saved.
func FuzzCollection(f *testing.F) {
	for seed := range int64(20) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed int64) {
		rnd := rand.New(rand.NewSource(seed))
		store := newMemStore()
		c, m := newCollection(t, "", store, 32), make(model)
		names := []string{"a", "b", "c", "d", "\xff", "d/a", "d/b", "d/e", "d/e/a", "d/e/f", "g"}
		name := func() string { return names[rnd.Intn(len(names))] }
		broken := errors.New("broken")
		for range 150 {
			n, n2 := name(), name()
			dir := path.Dir(n)
			switch op := rnd.Intn(12); op {
			case 0, 1, 2, 3, 4: // append, creating the file
				data := make([]byte, rnd.Intn(50))
				rnd.Read(data)
				flag := os.O_RDWR | os.O_CREATE
				if op == 0 {
					flag |= os.O_TRUNC
				}
				file, err := c.OpenFile(n, flag)
				if ok := m.isDir(dir) && !m.isDir(n); (err == nil) != ok {
					t.Fatalf("open %q: %v", n, err)
				}
				if err != nil {
					continue
				}
				if op == 0 {
					m[n] = nil
				}
				written, err := file.Append(data)
				if err != nil && !errors.Is(err, broken) {
					t.Fatal(err)
				}
				m[n] = append(append([]byte{}, m[n]...), data[:written]...)
				file.Close()
			case 5:
				_, exists := m[n]
				err := c.Mkdir(n)
				if ok := m.isDir(dir) && !exists; (err == nil) != ok {
					t.Fatalf("mkdir %q: %v", n, err)
				}
				if err == nil {
					m[n] = nil
				}
			case 6:
				if err := c.RemoveAll(n); err == nil {
					m.removeAll(n)
				} else if m.isDir(dir) {
					t.Fatal(err)
				}
			case 7:
				if err := c.Rename(n, n2); err == nil && n != n2 {
					part := make(model)
					part.copyTree("x", m, n)
					m.removeAll(n)
					m.removeAll(n2)
					m.copyTree(n2, part, "x")
				}
			case 8, 9: // by reference, from itself or from another collection
				from := c
				if op == 9 {
					from = newCollection(t, "", store, 32)
					if err := from.Splice("", c, ""); err != nil {
						t.Fatal(err)
					}
				}
				_, exists := m[n]
				err := c.Splice(n2, from, n)
				if ok := exists && m.isDir(path.Dir(n2)); (err == nil) != ok {
					t.Fatalf("splice %q to %q: %v", n, n2, err)
				}
				if err == nil {
					part := make(model)
					part.copyTree("x", m, n)
					m.removeAll(n2)
					m.copyTree(n2, part, "x")
				}
			case 10:
				if err := c.Flush(t.Context(), ".", rnd.Intn(2) == 0); err != nil {
					t.Fatal(err)
				}
			case 11:
				if rnd.Intn(2) == 0 {
					store.setFail(broken)
				} else {
					store.setFail(nil)
				}
				text, err := c.MarshalManifest(t.Context())
				if err != nil && !errors.Is(err, broken) {
					t.Fatal(err)
				}
				if err == nil {
					m.check(t, newCollection(t, text, store, 0))
				}
			}
			m.check(t, c)
		}
		store.setFail(nil)
		c.MarshalManifest(t.Context()) // an upload may have begun while it was broken
		text := marshal(t, c)
		m.check(t, newCollection(t, text, store, 0))
		if again, err := keep.NormalizeManifest(text); err != nil || again != text {
			t.Fatalf("%q is not in normal form (%v)", text, err)
		}
	})
}
