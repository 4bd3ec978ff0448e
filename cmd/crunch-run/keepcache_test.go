package main_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What one container has read from Keep, the next one of the node finds on
// disk, and so does one whose file was damaged there, from Keep.
func TestSharedKeepCache(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	in := c.store(t, map[string][]byte{"f": []byte("read by both\n")})
	image := c.storeTools(t)
	cat := func() string {
		record := c.runOne(t, n, image, sh("cat /in/f"), attrs{"mounts": attrs{
			"/out": attrs{"kind": "tmp", "capacity": 1 << 30},
			"/in":  attrs{"kind": "collection", "portable_data_hash": in},
		}})
		logs := c.logs(t, record)
		if log := logs["crunch-run.txt"]; !strings.Contains(log, "--disk-cache --disk-cache-dir "+n.keepCache()+" --file-cache ") {
			t.Errorf("the FUSE server is not told of the cache:\n%s", log)
		}
		return stamped(t, logs["stdout.txt"])
	}
	if out := cat(); out != "read by both\n" {
		t.Fatalf("stdout %q", out)
	}
	cached, _ := filepath.Glob(filepath.Join(n.keepCache(), "???", "*.keepcacheblock"))
	if len(cached) != 1 {
		t.Fatalf("cached: %q", cached)
	}
	// Of the block, Keep has nothing any more.
	hash := strings.TrimSuffix(filepath.Base(cached[0]), ".keepcacheblock")
	removed := 0
	err := filepath.WalkDir(filepath.Join(n.dir, "cluster"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == hash {
			removed++
			return os.Rename(path, path+".away")
		}
		return err
	})
	if err != nil || removed != 1 {
		t.Fatalf("%d copies removed, %v", removed, err)
	}
	if out := cat(); out != "read by both\n" {
		t.Errorf("stdout of the second container %q", out)
	}
	path := filepath.Join(n.dir, "cluster", "keep", hash[:3], hash)
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cached[0], []byte("READ BY BOTH\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := cat(); out != "read by both\n" {
		t.Errorf("with a damaged cache: stdout %q", out)
	}
}
