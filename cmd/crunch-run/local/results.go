package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/docker/go-units"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/transfer"
)

// results are the end of the run, brought to disk.
type results struct {
	container  arvados.Container
	output     string // directory; "": there is none
	partial    bool   // it is that of a container that was stopped
	log        string // directory; "": there is none
	clusterDir string // "" unless it is kept
}

// fetchResults reads the records and copies output and log from Keep to disk.
func fetchResults(ctx context.Context, s *transfer.Session, request arvados.ContainerRequest, d dirs) (*results, error) {
	container, err := s.API.GetContainer(ctx, request.ContainerUUID)
	if err != nil {
		return nil, fmt.Errorf("read the container's record: %w", err)
	}
	if request, err = s.API.GetContainerRequest(ctx, request.UUID); err != nil {
		return nil, fmt.Errorf("read the container request: %w", err)
	}
	res := &results{container: container}
	output := request.OutputUUID
	if output == "" && container.ExitCode != nil {
		if output, err = partialOutput(ctx, s, container.UUID); err != nil {
			return nil, fmt.Errorf("look for partial output: %w", err)
		}
		res.partial = output != ""
	}
	var errs []error
	if output != "" {
		res.output, err = export(ctx, s, output, "", d.output)
		errs = append(errs, err)
	}
	// The container's own log collection is the dispatcher's; the user has a
	// copy in the request's.
	if request.LogUUID != "" {
		res.log, err = export(ctx, s, request.LogUUID, "log for container "+container.UUID, d.log)
		errs = append(errs, err)
	}
	return res, errors.Join(errs...)
}

// export copies a collection, or a directory in it, to the first of dirs that
// takes it whole, and returns that one. The cluster is about to be removed, so
// what cannot go where it should goes elsewhere; that is an error all the same.
func export(ctx context.Context, s *transfer.Session, id, sub string, dirs []string) (where string, err error) {
	var errs []error
	for _, dir := range dirs {
		err := s.Export(ctx, id, sub, dir)
		if err == nil {
			if len(errs) > 0 {
				errs = append(errs, fmt.Errorf("results are complete in %s", dir))
			}
			return dir, errors.Join(errs...)
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// partialOutput finds the collection with the output of a container that was
// stopped, and returns its UUID, "" if there is none. No record names it: it is
// in the trash of the user the container ran for.
func partialOutput(ctx context.Context, s *transfer.Session, container string) (uuid string, err error) {
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
	label := "output"
	if r.partial {
		label = "partial output"
	}
	line(label, "%s", cmp.Or(r.output, "none"))
	line("log", "%s", cmp.Or(r.log, "none"))
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
