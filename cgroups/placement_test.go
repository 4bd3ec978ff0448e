package cgroups

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

type parentVector struct {
	Self      string `json:"proc_self_cgroup"`
	Subsystem string `json:"subsystem"`
	Subsys2   string `json:"cgroup_parent_subsystem"`
	Path      string `json:"path"`
	Error     string `json:"error"`
}

// colonPaths are the vectors this package answers differently on purpose: the
// reference cuts a path at its first colon, which names a group that does not
// exist; the container belongs below the supervisor's own group.
var colonPaths = map[string]string{
	"4:memory:/a:b\n":    "/a:b",
	"12:memory:/a:b/c\n": "/a:b/c",
	"0::/a:b\n":          "/a:b",
}

func TestParentOfVectors(t *testing.T) {
	for _, file := range []string{"lifecycle.json", "cli-and-dispatch.json"} {
		var vectors struct {
			CgroupParent []parentVector `json:"cgroup_parent"`
		}
		readJSON(t, "../testdata/spec/"+file, &vectors)
		if len(vectors.CgroupParent) == 0 {
			t.Fatalf("no vectors in %s", file)
		}
		for _, v := range vectors.CgroupParent {
			want := v.Path
			if other, ok := colonPaths[v.Self]; ok {
				want = other
			}
			got, err := ParentOf(v.Self, v.Subsystem+v.Subsys2)
			if got != want || errText(err) != v.Error {
				t.Errorf("%s: ParentOf(%q, %q) = %q, %v; want %q, %q", file, v.Self, v.Subsystem+v.Subsys2, got, err, want, v.Error)
			}
		}
	}
}

func TestPlacement(t *testing.T) {
	const self = "4:memory:/slurm/job_7\n1:cpu:/\n"
	for _, tc := range []struct {
		name      string
		placement Placement
		id        string
		want      string
		err       string
	}{
		{"default", Placement{}, "x-1", "/crunch-run/x-1", ""},
		{"absolute parent", Placement{Parent: "/site/jobs/"}, "x", "/site/jobs/x", ""},
		{"relative parent stays relative", Placement{Parent: "mine"}, "x", "mine/x", ""},
		{"own group", Placement{Parent: "/site", Subsystem: "memory"}, "x", "/slurm/job_7/x", ""},
		{"own group is the root", Placement{Subsystem: "cpu"}, "x", "/x", ""},
		{"no such subsystem", Placement{Subsystem: "io"}, "x", "", "not found"},
		{"name with slash", Placement{}, "a/b", "", "single path element"},
		{"name goes up", Placement{}, "..", "", "single path element"},
		{"no name", Placement{}, "", "", "single path element"},
		{"parent goes up", Placement{Parent: "a/../../b"}, "x", "", "leaves the hierarchy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.placement.Path(tc.id, self)
			if got != tc.want || !strings.Contains(errText(err), tc.err) || (err == nil) != (tc.err == "") {
				t.Errorf("got %q, %v; want %q, error with %q", got, err, tc.want, tc.err)
			}
		})
	}
}

func FuzzParentOf(f *testing.F) {
	f.Add("12:memory:/a:b/c\n0::/x\n", "memory")
	f.Add("::\n", "")
	f.Fuzz(func(t *testing.T, self, subsystem string) {
		path, err := ParentOf(self, subsystem)
		if err == nil && !strings.HasPrefix(path, "/") {
			t.Errorf("path %q is not absolute", path)
		}
	})
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func readJSON(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}
