package main_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDebian runs a Python program in a Debian of hundreds of megabytes, with
// inputs, children and a thousand output files, and compares every one of them.
func TestDebian(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	input, output := filepath.Join(n.dir, "input"), filepath.Join(n.dir, "output")
	size := 0
	for i, name := range []string{"one.bin", "sub/two three.bin", "sub/deeper/ümlaut.bin", "empty"} {
		path := filepath.Join(input, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		data := []byte(strings.Repeat(name, i*400_000*(3-i)))
		size += len(data)
		writeFile(t, path, data)
	}
	writeFile(t, filepath.Join(input, "work.py"), []byte(readFile(t, "testdata/work.py")))
	size += len(readFile(t, "testdata/work.py"))

	res := n.local(t, "--image", debianImage(t), "--input", "data="+input, "--output", output, "--vcpus", "2", "--", "python3", "/in/data/work.py")
	for _, want := range []string{fmt.Sprintf("read %d bytes\n", size), "hello from C\n"} {
		if !strings.Contains(res.stderr, want) {
			t.Errorf("stderr lacks %q:\n%s", want, res.stderr)
		}
	}
	want := make(map[string]string)
	for line := range strings.Lines(res.stdout) {
		var pair [2]string
		if err := json.Unmarshal([]byte(line), &pair); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		name, err := hex.DecodeString(pair[0])
		if err != nil {
			t.Fatal(err)
		}
		want[string(name)] = pair[1]
	}
	if len(want) != 1001 {
		t.Fatalf("the program says it wrote %d files", len(want))
	}
	got := make(map[string]string)
	err := filepath.WalkDir(output, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(output, path)
		got[name] = fmt.Sprintf("%x", sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("output file %q has digest %q, want %q", name, got[name], want[name])
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("output file %q was never written", name)
	}
}
