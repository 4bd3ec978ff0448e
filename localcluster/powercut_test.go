package localcluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/internal/powercut"
)

// Whenever the power goes, also while the cluster is made or started again, it starts
// from what is found, and has every write that it had answered to.
func TestPowerCut(t *testing.T) { powercut.Run(t, powerCut) }

func powerCut(t *testing.T, disk *powercut.Disk) {
	type promise struct {
		uuid, data string
		given      powercut.Moment
	}
	var promises []promise
	begin := disk.Now()
	t.Run("work", func(t *testing.T) {
		for round := range 2 {
			info, kill := startChild(t, filepath.Join(disk.Dir, "cluster"))
			user := newClient(t, info.Host, info.CA, info.User)
			user.keep = info.Keep
			for i := range 3 {
				data := fmt.Sprint("data", round, i)
				record := user.collection(nil, "f", data)
				promises = append(promises, promise{str(record, "uuid"), data, disk.Now()})
			}
			kill()
		}
	})
	end := disk.Cut()
	if len(promises) == 0 {
		t.FailNow()
	}
	moments := []powercut.Moment{begin, end}
	for i := range 5 { // while it was made
		moments = append(moments, begin+(promises[0].given-begin)*powercut.Moment(i+1)/6)
	}
	for _, p := range promises {
		moments = append(moments, p.given)
	}
	disk.Look(0, moments, func(t *testing.T, m powercut.Moment, found string) {
		dir := filepath.Join(found, "cluster")
		c, err := Start(t.Context(), Options{Dir: dir, ClusterID: "zzzzz"})
		if err != nil {
			files, _ := os.ReadDir(dir)
			t.Fatalf("of %d..%d: %v; there is %v", promises[0].given, end, err, files)
		}
		defer c.Close()
		user := clientOf(t, c, c.UserToken())
		for _, p := range promises {
			if m < p.given {
				break
			}
			record := user.must("GET", "collections/"+p.uuid, nil)
			locator := strings.Fields(str(record, "manifest_text"))[1]
			if a := user.send("GET", user.keep+"/"+locator, nil, nil); a.status != 200 || string(a.body) != p.data {
				t.Errorf("%s: %d %q, want %q", p.uuid, a.status, a.body, p.data)
			}
		}
		user.collection(nil, "f", "new")
	})
}
