package main_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What doc/security.md names as the test of a promise is one.
func TestSecurityPageNamesTests(t *testing.T) {
	page := readFile(t, "../../doc/security.md")
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Z][A-Za-z]*)`").FindAllStringSubmatch(page, -1)
	if len(named) < 40 {
		t.Errorf("only %d tests are named", len(named))
	}
	declared := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			declared[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range named {
		if !declared[m[1]] {
			t.Errorf("there is no %s", m[1])
		}
	}
}

// doc/architecture.md has every package on its map, and none that is gone.
func TestArchitecturePageNamesPackages(t *testing.T) {
	page := readFile(t, "../../doc/architecture.md")
	_, page, _ = strings.Cut(page, "## Map")
	page, _, _ = strings.Cut(page, "## Processes")
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z0-9/-]+)`").FindAllStringSubmatch(page, -1) {
		named[m[1]] = true
	}
	packages := 0
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		if name := entry.Name(); name == "testdata" || len(name) > 2 && name[0] == '.' {
			return fs.SkipDir
		}
		if files, _ := filepath.Glob(path + "/*.go"); len(files) > 0 {
			packages++
			if name := strings.TrimPrefix(path, "../../"); !named[name] {
				t.Errorf("package %s is not on the map", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range named {
		if _, err := os.Stat("../../" + name); strings.Contains(name, "/") && err != nil {
			t.Errorf("there is no package %s", name)
		}
	}
	if packages < 60 {
		t.Errorf("found only %d packages", packages)
	}
}
