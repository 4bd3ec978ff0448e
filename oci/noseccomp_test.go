//go:build !seccomp

package oci_test

import (
	"errors"
	"testing"

	"crunch-oci/oci"
)

const seccompBuilt = false

// A filter that cannot be enforced is not silently left out.
func TestSeccompIsRefused(t *testing.T) {
	req := newRequest(t, newID(), "true")
	req.NoSeccomp = false
	if _, err := create(t, req, nil); !errors.Is(err, oci.ErrSeccomp) {
		t.Errorf("Create: %v", err)
	}
}
