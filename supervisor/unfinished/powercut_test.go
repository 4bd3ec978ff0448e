package unfinished

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/internal/powercut"
)

// Whenever the power goes, what was synced is there, or what came later: whole.
func TestPowerCut(t *testing.T) {
	for _, fs := range powercut.Filesystems() {
		t.Run(fs.Name, func(t *testing.T) { powerCut(t, fs) })
	}
}

func powerCut(t *testing.T, fs powercut.Filesystem) {
	disk := powercut.New(t, fs)
	result := func(version int) Result {
		return Result{UUID: uuid, State: "Complete", Reason: fmt.Sprint(version),
			Output: &Collection{Manifest: strings.Repeat(fmt.Sprint(version), 50_000)}}
	}
	kept, err := Dir(filepath.Join(disk.Dir, "unfinished")).Keep(result(0))
	if err != nil {
		t.Fatal(err)
	}
	var synced, between []powercut.Moment
	for version := range 4 {
		if version > 0 {
			if err := kept.Update(result(version)); err != nil {
				t.Fatal(err)
			}
			disk.Commit()
			between = append(between, disk.Now())
		}
		if err := kept.Sync(); err != nil {
			t.Fatal(err)
		}
		synced = append(synced, disk.Now())
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	end := disk.Cut()
	chance := rand.New(rand.NewPCG(3, 3))
	for _, m := range powercut.Moments(end, chance, 10, append(between, synced...)...) {
		dir, undo := disk.Find(m, chance)
		least := -1
		for version, at := range synced {
			if m >= at {
				least = version
			}
		}
		list, err := Dir(filepath.Join(dir, "unfinished")).List()
		switch {
		case least < 0:
		case err != nil || len(list) != 1:
			t.Errorf("moment %d: version %d is lost: %d results, %v", m, least, len(list), err)
		default:
			var version int
			_, err := fmt.Sscan(list[0].Reason, &version)
			if err != nil || version < least || list[0].Output.Manifest != result(version).Output.Manifest {
				t.Errorf("moment %d: version %q instead of %d", m, list[0].Reason, least)
			}
		}
		undo()
	}
}
