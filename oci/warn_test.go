package oci_test

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/oci"
)

// What libcontainer warns of, while it reads the specification and in the
// container's init, reaches the caller and nobody else.
func TestWarnings(t *testing.T) {
	var elsewhere bytes.Buffer
	before := slog.Default()
	defer log.SetFlags(log.Flags()) // which SetDefault changes too
	defer log.SetOutput(log.Writer())
	slog.SetDefault(slog.New(slog.NewTextHandler(&elsewhere, nil)))
	defer slog.SetDefault(before)

	req := newRequest(t, newID(), "true")
	spec, err := oci.NewSpec(req)
	must(t, err)
	spec.Process.Capabilities.Bounding = append(spec.Process.Capabilities.Bounding, "CAP_NO_SUCH")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "tmp/relative", Type: "tmpfs", Source: "tmpfs"})
	bundle := t.TempDir()
	must(t, oci.WriteBundle(bundle, spec))

	var mu sync.Mutex
	var said []string
	r := &oci.Runtime{StateDir: t.TempDir(), Warn: func(text string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, text)
	}}
	live := func() {
		ctr, err := r.Create(t.Context(), filepath.Base(req.CgroupsPath), bundle, oci.Stdio{})
		must(t, err)
		must(t, ctr.Delete(context.Background()))
	}
	live()
	for _, want := range []string{"libcontainer: mount destination tmp/relative is not absolute", "CAP_NO_SUCH"} {
		if !slices.ContainsFunc(said, func(line string) bool { return strings.Contains(line, want) }) {
			t.Errorf("no %q in %q", want, said)
		}
	}
	if elsewhere.Len() > 0 {
		t.Errorf("said elsewhere: %s", &elsewhere)
	}

	// A container that is gone has no listener any more.
	told := len(said)
	r.Warn = nil
	live()
	if len(said) != told || !strings.Contains(elsewhere.String(), "tmp/relative") {
		t.Errorf("%q, and elsewhere %s", said[told:], &elsewhere)
	}
}
