package unfinished

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/internal/powercut"
)

// Whenever the power goes, what was synced is there, or what came later: whole.
func TestPowerCut(t *testing.T) { powercut.Run(t, powerCut) }

func powerCut(t *testing.T, disk *powercut.Disk) {
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
	disk.Cut()
	disk.Look(10, append(between, synced...), func(t *testing.T, m powercut.Moment, dir string) {
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
			t.Errorf("version %d is lost: %d results, %v", least, len(list), err)
		default:
			var version int
			_, err := fmt.Sscan(list[0].Reason, &version)
			if err != nil || version < least || list[0].Output.Manifest != result(version).Output.Manifest {
				t.Errorf("version %q instead of %d", list[0].Reason, least)
			}
		}
	})
}
