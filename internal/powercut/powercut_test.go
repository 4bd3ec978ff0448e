package powercut_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"crunch-oci/internal/powercut"
)

// What was synced is found, at that moment and later; what was not is lost at some
// moments, or there in name only.
func TestPowerCut(t *testing.T) {
	powercut.Run(t, func(t *testing.T, d *powercut.Disk) {
		content := make([]byte, 100_000)
		for i := range content {
			content[i] = 1
		}
		write := func(name string, sync bool) {
			t.Helper()
			f, err := os.Create(filepath.Join(d.Dir, name))
			if err == nil {
				_, err = f.Write(content)
			}
			if err == nil && sync {
				err = f.Sync()
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
		write("synced", true)
		synced := d.Now()
		write("careless.tmp", false)
		if err := os.Rename(filepath.Join(d.Dir, "careless.tmp"), filepath.Join(d.Dir, "careless")); err != nil {
			t.Fatal(err)
		}
		// The journal is written with what belongs to others.
		for range 3 {
			write("other", true)
		}
		end := d.Cut()
		var moments []powercut.Moment
		for i := range 10 {
			moments = append(moments, synced+(end-synced)*powercut.Moment(i)/9)
		}
		damaged := 0
		d.Look(0, moments, func(t *testing.T, m powercut.Moment, dir string) {
			if m < synced {
				return // one of chance
			}
			if b, err := os.ReadFile(filepath.Join(dir, "synced")); err != nil || string(b) != string(content) {
				t.Errorf("of %d..%d: what was synced is lost: %d bytes, %v", synced, end, len(b), err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "careless")); err == nil && string(b) != string(content) {
				damaged++
			}
		})
		if damaged == 0 {
			t.Error("a careless program is always lucky: this disk shows nothing")
		}
	})
}
