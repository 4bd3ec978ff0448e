package oci_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Hooks are told where the bundle is, wherever this process is at work.
func TestHooksGetTheBundle(t *testing.T) {
	got := filepath.Join(t.TempDir(), "state")
	hook := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >" + got}}
	b, err := createEdited(t, newRequest(t, newID(), "true"), func(spec *specs.Spec) error {
		spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{hook}}
		return nil
	})
	must(t, err)
	text, err := os.ReadFile(got)
	must(t, err)
	var state specs.State
	must(t, json.Unmarshal(text, &state))
	if state.Bundle != b.bundle || state.ID != b.id {
		t.Errorf("%s, want the bundle %s", text, b.bundle)
	}
}
