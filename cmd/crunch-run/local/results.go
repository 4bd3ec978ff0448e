package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"

	"crunch-oci/arvados"
	"crunch-oci/keep"
)

// results are the end of the run, brought to disk.
type results struct {
	container  arvados.Container
	dirs       dirs
	hasOutput  bool
	hasLog     bool
	clusterDir string // "" unless it is kept
}

// fetchResults reads the record and copies output and log from Keep to disk.
func (s *Session) fetchResults(ctx context.Context, request arvados.ContainerRequest, d dirs) (*results, error) {
	container, err := s.API.GetContainer(ctx, request.ContainerUUID)
	if err != nil {
		return nil, fmt.Errorf("read the container's record: %w", err)
	}
	res := &results{container: container, dirs: d}
	var errs []error
	if container.Output != "" {
		res.hasOutput = true
		errs = append(errs, s.export(ctx, container.Output, d.output))
	}
	if container.Log != "" {
		res.hasLog = true
		errs = append(errs, s.export(ctx, container.Log, d.log))
	}
	return res, errors.Join(errs...)
}

// export copies a collection into a new or empty directory.
func (s *Session) export(ctx context.Context, pdh, dir string) error {
	record, err := s.API.GetCollection(ctx, pdh, "manifest_text")
	if err != nil {
		return fmt.Errorf("read collection %s: %w", pdh, err)
	}
	c, err := keep.NewCollection(record.ManifestText, s.Blocks)
	if err != nil {
		return fmt.Errorf("read collection %s: %w", pdh, err)
	}
	defer c.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Names come from a container: Root keeps them inside.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	err = c.Walk(".", func(name string, info keep.FileInfo) error {
		switch {
		case name == ".":
			return nil
		case info.IsDir():
			return root.MkdirAll(name, 0o755)
		case filepath.Base(name) == ".keep" && info.Size() == 0:
			return nil // stands for the empty directory it is in
		}
		return exportFile(ctx, c, root, name)
	})
	if err != nil {
		return fmt.Errorf("copy collection %s to %s: %w", pdh, dir, err)
	}
	return nil
}

func exportFile(ctx context.Context, c *keep.Collection, root *os.Root, name string) (err error) {
	in, err := c.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in.WithContext(ctx))
	return err
}

// summarise tells in a few lines how it went and where things are.
func (r *results) summarise(v *view, began time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "  %-16s %s\n", label, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&b, "\nContainer %s\n", r.container.UUID)
	line("state", "%s", r.container.State)
	switch {
	case r.container.ExitCode != nil && v.usage.OOMKilled:
		line("exit code", "%d (ran out of memory)", *r.container.ExitCode)
	case r.container.ExitCode != nil:
		line("exit code", "%d", *r.container.ExitCode)
	default:
		line("exit code", "none")
	}
	if r.hasOutput {
		line("output", "%s", r.dirs.output)
	} else {
		line("output", "none")
	}
	if r.hasLog {
		line("log", "%s", r.dirs.log)
	} else {
		line("log", "none")
	}
	if r.clusterDir != "" {
		line("cluster", "%s", r.clusterDir)
	}
	if !v.started.IsZero() {
		line("first process", "%.2f s after the start", v.started.Sub(began).Seconds())
	}
	if v.usage.PeakMemory > 0 {
		line("peak memory", "%s", units.BytesSize(float64(v.usage.PeakMemory)))
	}
	if !v.started.IsZero() {
		line("CPU time", "%.2f s", v.usage.CPU.Seconds())
	}
	fmt.Fprint(v.stderr, b.String())
}
