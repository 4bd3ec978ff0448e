package mounts

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/hostdir"
)

// addOutputStream plans a stdout or stderr mount: a file in the output
// directory (section 6).
func (p *planner) addOutputStream(t target) error {
	if t.Kind != "file" {
		return fmt.Errorf("unsupported mount kind '%s' for %s: only 'file' is supported", t.Kind, t.path)
	}
	rel, ok := below(path.Clean(t.Path), p.plan.OutputPath)
	if !ok || !strings.HasPrefix(t.Path, "/") || strings.HasSuffix(t.Path, "/") || strings.IndexByte(t.Path, 0) >= 0 {
		name := strings.ToUpper(t.path[:1]) + t.path[1:]
		dir := strings.TrimSuffix(p.OutputPath, "/") + "/"
		return fmt.Errorf("%s path does not start with OutputPath: %s, %s", name, t.Path, dir)
	}
	file := &OutputFile{Path: rel}
	if t.path == "stdout" {
		p.plan.Stdout = file
	} else {
		p.plan.Stderr = file
	}
	return nil
}

// addStdin plans a stdin mount. It is never bound: "stdin" is no path.
func (p *planner) addStdin(t target) error {
	kinds := []string{"collection", "json"}
	if t.secret {
		kinds = []string{"json", "text"}
	}
	if !slices.Contains(kinds, t.Kind) {
		return fmt.Errorf("unsupported mount kind '%s' for stdin: only 'collection' and 'json' are supported", t.Kind)
	}
	if t.Kind != "collection" {
		content, err := t.text()
		p.plan.Stdin.Content = content
		return err
	}
	c, err := t.collection()
	if err != nil {
		return err
	}
	if c.ID == "" {
		return errNoCollection
	}
	p.plan.ByUUID = p.plan.ByUUID || t.UUID != ""
	p.plan.Stdin.Collection = &c
	p.need(input{c, filepath.Join(p.plan.KeepDir, "by_id", c.ID, c.Path), true})
	return nil
}

// CreateOutputFile creates or empties one of p.Stdout and p.Stderr in the output
// directory, following no links, and opens it for writing.
func (p *Plan) CreateOutputFile(file *OutputFile) (*os.File, error) {
	out, err := hostdir.Open(p.OutputDir)
	if err != nil {
		return nil, fmt.Errorf("open output directory: %w", err)
	}
	defer out.Close()
	if dir := path.Dir(file.Path); dir != "." {
		if err := out.MkdirAll(dir, outputDirMode); err != nil {
			//lint:ignore ST1005 operators search for the reference's texts
			return nil, fmt.Errorf("While MkdirAll %q: %w", dir, err)
		}
	}
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC
	if p.Stdout != nil && p.Stderr != nil && *p.Stdout == *p.Stderr {
		// Otherwise each would overwrite what the other wrote.
		flags |= unix.O_APPEND
	}
	f, err := out.OpenFile(file.Path, flags, 0o666)
	if err != nil {
		//lint:ignore ST1005 operators search for the reference's texts
		return nil, fmt.Errorf("While creating file %q: %w", file.Path, err)
	}
	return f, nil
}
