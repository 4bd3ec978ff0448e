//go:build !faults

package wire

import (
	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/supervisor"
)

// The waits of the retry policies are real ones, except in the program that
// "make faults" builds.

func paceAPI(cfg arvados.Config) arvados.Config { return cfg }

func paceKeep(cfg keep.ClientConfig) keep.ClientConfig { return cfg }

func pace(*supervisor.Supervisor) {}
