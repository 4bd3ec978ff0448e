package capture

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/keep"
)

type globVector struct {
	Globs     []string
	Dirs      []string
	Files     []string
	KeptDirs  []string `json:"kept_dirs"`
	KeptFiles []string `json:"kept_files"`
}

func loadGlobVectors(t *testing.T) (host, collection []globVector) {
	t.Helper()
	text, err := os.ReadFile("../../testdata/spec/mounts-and-output.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Host       []globVector `json:"glob_host_tree"`
		Collection []globVector `json:"glob_collection"`
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	if len(all.Host) == 0 || len(all.Collection) == 0 {
		t.Fatal("no vectors")
	}
	return all.Host, all.Collection
}

// contents lists the directories and files of a manifest, but for .keep files.
func contents(t *testing.T, manifest string) (dirs, files []string) {
	t.Helper()
	c, err := keep.NewCollection(manifest, nil)
	if err != nil {
		t.Fatal(err)
	}
	dirs, files = []string{}, []string{}
	err = c.Walk(".", func(name string, info keep.FileInfo) error {
		switch {
		case name == "." || info.Name() == ".keep":
		case info.IsDir():
			dirs = append(dirs, name)
		default:
			files = append(files, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(dirs)
	slices.Sort(files)
	return dirs, files
}

func TestGlobHostTreeVectors(t *testing.T) {
	host, _ := loadGlobVectors(t)
	for _, v := range host {
		dir := t.TempDir()
		for _, d := range v.Dirs {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range v.Files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r := capture(t, Config{Mounts: tmpOutput(), OutputPath: "/out", OutputGlob: v.Globs, HostDir: dir})
		slices.Sort(v.KeptDirs)
		slices.Sort(v.KeptFiles)
		dirs, files := contents(t, r.must(t))
		if !slices.Equal(dirs, v.KeptDirs) || !slices.Equal(files, v.KeptFiles) {
			t.Errorf("%q: kept %v and %v, want %v and %v", v.Globs, dirs, files, v.KeptDirs, v.KeptFiles)
		}
	}
}

func TestGlobCollectionVectors(t *testing.T) {
	_, collection := loadGlobVectors(t)
	const manifest = ". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:bar 0:3:foo\n" +
		"./baz acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:quux\n" +
		"./baz/parent1 acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:item1\n"
	for _, v := range collection {
		r := capture(t, Config{
			Mounts:     map[string]arvados.Mount{"/out": {Kind: "collection", Writable: true}},
			OutputPath: "/out", OutputGlob: v.Globs, Live: manifests{"/out": manifest}.OpenCollection,
		})
		if _, files := contents(t, r.must(t)); !slices.Equal(files, v.KeptFiles) {
			t.Errorf("%q: kept %v, want %v", v.Globs, files, v.KeptFiles)
		}
	}
}
