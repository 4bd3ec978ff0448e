package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
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
	partial    bool // it is that of a container that was stopped
	hasLog     bool
	clusterDir string // "" unless it is kept
}

// fetchResults reads the records and copies output and log from Keep to disk.
func (s *Session) fetchResults(ctx context.Context, request arvados.ContainerRequest, d dirs) (*results, error) {
	container, err := s.API.GetContainer(ctx, request.ContainerUUID)
	if err != nil {
		return nil, fmt.Errorf("read the container's record: %w", err)
	}
	if request, err = s.API.GetContainerRequest(ctx, request.UUID); err != nil {
		return nil, fmt.Errorf("read the container request: %w", err)
	}
	res := &results{container: container, dirs: d}
	output := request.OutputUUID
	if output == "" && container.ExitCode != nil {
		if output, err = s.partialOutput(ctx, container.UUID); err != nil {
			return nil, fmt.Errorf("look for partial output: %w", err)
		}
		res.partial = output != ""
	}
	var errs []error
	if output != "" {
		res.hasOutput = true
		errs = append(errs, s.export(ctx, output, "", d.output))
	}
	// The container's own log collection is the dispatcher's; the user has a
	// copy in the request's.
	if request.LogUUID != "" {
		res.hasLog = true
		errs = append(errs, s.export(ctx, request.LogUUID, "log for container "+container.UUID, d.log))
	}
	return res, errors.Join(errs...)
}

// partialOutput finds the collection with the output of a container that was
// stopped, and returns its UUID, "" if there is none. No record names it: it is
// in the trash of the user the container ran for.
func (s *Session) partialOutput(ctx context.Context, container string) (uuid string, err error) {
	var found struct{ Items []arvados.Collection }
	err = s.API.Call(ctx, http.MethodGet, "collections", map[string]any{
		"filters":       []any{[]any{"name", "=", "output for " + container}},
		"include_trash": true, "select": []string{"uuid"},
	}, &found)
	if err != nil || len(found.Items) == 0 {
		return "", err
	}
	uuid = found.Items[0].UUID
	// What is in the trash has no signatures, so that it cannot be read.
	params := map[string]any{"ensure_unique_name": true}
	return uuid, s.API.Call(ctx, http.MethodPost, "collections/"+uuid+"/untrash", params, &struct{}{})
}

// export copies the directory sub of a collection into a new or empty directory.
func (s *Session) export(ctx context.Context, uuid, sub, dir string) error {
	record, err := s.API.GetCollection(ctx, uuid, "uuid", "manifest_text")
	if err != nil {
		return fmt.Errorf("read collection %s: %w", uuid, err)
	}
	c, err := keep.NewCollection(record.ManifestText, s.Blocks)
	if err != nil {
		return fmt.Errorf("read collection %s: %w", uuid, err)
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
	err = c.Walk(sub, func(name string, info keep.FileInfo) error {
		// Walk begins with sub itself.
		dst := strings.TrimPrefix(strings.TrimPrefix(name, sub), "/")
		switch {
		case dst == "" || dst == ".":
			return nil
		case info.IsDir():
			return root.MkdirAll(dst, 0o755)
		case path.Base(name) == ".keep" && info.Size() == 0:
			return nil // stands for the empty directory it is in
		}
		return exportFile(ctx, c, root, name, dst)
	})
	if err != nil {
		return fmt.Errorf("copy collection %s to %s: %w", uuid, dir, err)
	}
	return nil
}

func exportFile(ctx context.Context, c *keep.Collection, root *os.Root, name, dst string) (err error) {
	in, err := c.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
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
	switch {
	case r.partial:
		line("partial output", "%s", r.dirs.output)
	case r.hasOutput:
		line("output", "%s", r.dirs.output)
	default:
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
