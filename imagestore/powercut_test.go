package imagestore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/internal/treetest"
	"crunch-oci/internal/powercut"
)

// Whenever the power goes, the store that is found has what was synced, nothing
// that is damaged and passes for whole, and nothing that hinders the next unpack.
func TestPowerCut(t *testing.T) { powercut.Run(t, powerCut) }

func powerCut(t *testing.T, disk *powercut.Disk) {
	chance := rand.New(rand.NewPCG(7, 7))
	layer := func(name string) []byte {
		es := []Entry{Dir("shared/" + name), File("shared/gone/.wh."+name, "")} // the second needs a cover
		for i := range 40 {
			es = append(es, File(fmt.Sprintf("shared/%s/%d", name, i), strings.Repeat(fmt.Sprint(i), chance.IntN(20000))))
		}
		return Tar(t, es...)
	}
	common := layer("common")
	var images [3]imagetest.Image
	var want [3]map[string]string
	plain := openStore(t, t.TempDir())
	for i := range images {
		images[i].Layers = [][]byte{common, layer(fmt.Sprint("own", i))}
		want[i] = list(t, mount(t, unpack(t, plain, images[i])), treetest.Options{})
	}

	s := openStore(t, filepath.Join(disk.Dir, "store"))
	s.boot = "before the power went"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	begin := disk.Now()
	first := unpack(t, s, images[0])
	unpacked := disk.Now()
	must(first.Sync())
	firstSynced := disk.Now()
	second := unpack(t, s, images[1])
	must(errors.Join(second.Sync(), second.Close()))
	secondSynced := disk.Now()
	must(unpack(t, s, images[2]).Close())
	must(first.Close())
	pruning := disk.Now()
	_, err := s.Prune(t.Context(), PruneOptions{Only: []string{first.name}})
	must(err)
	pruned := disk.Now()
	must(unpack(t, s, images[0]).Close())
	s.Close(t.Context())
	end := disk.Cut()

	reused := 0
	named := []powercut.Moment{begin, unpacked, firstSynced, secondSynced, pruning, pruned, end}
	disk.Look(9, named, func(t *testing.T, m powercut.Moment, dir string) {
		t.Run("found", func(t *testing.T) {
			s := openStore(t, filepath.Join(dir, "store"))
			for i, img := range images {
				snap, err := s.Lookup(Key{ID: img.ID()})
				switch {
				case err == nil:
					reused++
				case !errors.Is(err, ErrNotFound):
					t.Errorf("image %d: %v", i, err)
					continue
				case i == 0 && m >= firstSynced && m <= pruning || i == 1 && m >= secondSynced:
					t.Errorf("image %d was synced, and is lost", i)
					fallthrough
				default:
					snap = unpack(t, s, img)
				}
				compare(t, fmt.Sprintf("image %d", i), want[i], list(t, mount(t, snap), treetest.Options{}))
			}
		})
		t.Run("removed", func(t *testing.T) {
			s := openStore(t, filepath.Join(dir, "store"))
			_, err := s.Prune(t.Context(), PruneOptions{All: true})
			tidyUp(t, s)
			checkTidy(t, filepath.Join(dir, "store"))
			c, cerr := s.Contents(t.Context())
			if err := errors.Join(err, cerr); err != nil || len(c.Images) > 0 || c.Size != (Amount{}) {
				t.Errorf("%+v, %v", c, err)
			}
		})
	})
	if reused == 0 {
		t.Error("no image is ever believed after a loss of power")
	}
}
