package keepstore

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"crunch-oci/internal/powercut"
)

// Whenever the power goes, every block that a PUT had answered for is there, and as
// young as promised; the others are there or not, but never damaged, and can be
// stored again.
func TestPowerCut(t *testing.T) { powercut.Run(t, powerCut) }

func powerCut(t *testing.T, disk *powercut.Disk) {
	on := func(root string) func(*Config) {
		return func(cfg *Config) {
			cfg.NoSync = false
			cfg.Volumes = []VolumeConfig{{UUID: "zzzzz-nyw5e-000000000000000", Root: filepath.Join(root, "keep")}}
		}
	}
	if err := os.Mkdir(filepath.Join(disk.Dir, "keep"), 0o755); err != nil {
		t.Fatal(err)
	}
	type promise struct {
		data   []byte
		signed string // locator
		given  powercut.Moment
		young  bool // it is about the time stamp
	}
	var promises []promise
	t.Run("work", func(t *testing.T) {
		c := start(t, on(disk.Dir))
		for i := range 4 {
			data := randomBytes(uint64(i), 1+i*90_000)
			// Two clients have the same block: each may rely on its answer.
			var clients sync.WaitGroup
			var given [2]powercut.Moment
			var signed [2]string
			for j := range given {
				clients.Go(func() { signed[j] = c.put(data); given[j] = disk.Now() })
			}
			clients.Wait()
			promises = append(promises, promise{data, signed[0], min(given[0], given[1]), false})
		}
		for i, p := range promises {
			old := time.Now().Add(-1000 * time.Hour)
			if err := errors.Join(os.Chtimes(c.file(p.data), old, old), dir(c.srv.mounts[0]).syncDir(c.file(p.data))); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				c.put(p.data)
			} else {
				c.want(c.do("TOUCH", "/"+md5hex(p.data), rootToken, nil), 200, "")
			}
			promises = append(promises, promise{p.data, p.signed, disk.Now(), true})
		}
	})
	disk.Cut()
	var named []powercut.Moment
	for _, p := range promises {
		named = append(named, p.given)
	}
	disk.Look(len(named)+2, named, func(t *testing.T, m powercut.Moment, found string) {
		if err := os.MkdirAll(filepath.Join(found, "keep"), 0o755); err != nil {
			t.Fatal(err)
		}
		c := start(t, on(found))
		for i, p := range promises {
			r := c.do("GET", "/"+p.signed, userToken, nil)
			switch {
			case r.status == 200 && r.body != string(p.data):
				t.Errorf("block %d is damaged, and was served", i)
			case m < p.given:
			case r.status != 200:
				t.Errorf("block %d is lost: %d %s", i, r.status, r.body)
			case p.young:
				if info, err := os.Stat(c.file(p.data)); err != nil || time.Since(info.ModTime()) > time.Hour {
					t.Errorf("block %d was touched, and is old again: %v", i, err)
				}
			}
		}
		for _, p := range promises {
			c.put(p.data)
		}
	})
}
