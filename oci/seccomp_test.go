//go:build seccomp

package oci_test

import (
	"testing"

	"crunch-oci/oci"
)

const seccompBuilt = true

// Docker's filter is on unless it is switched off.
func TestSeccomp(t *testing.T) {
	for _, off := range []bool{false, true} {
		got := runScript(t, "grep Seccomp: /proc/self/status", func(r *oci.Request) { r.NoSeccomp = off })
		if want := map[bool]string{false: "2", true: "0"}[off]; got != "Seccomp:\t"+want+"\n" {
			t.Errorf("off %v: %q", off, got)
		}
	}
}
