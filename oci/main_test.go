package oci_test

import (
	"os"
	"testing"

	_ "github.com/opencontainers/cgroups/devices"           // device rules
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the init's C part

	"crunch-oci/internal/leaktest"
	"crunch-oci/oci"
)

// The test binary is its containers' init, as crunch-run is.
func TestMain(m *testing.M) {
	if oci.IsInit(os.Args) {
		oci.Init()
	}
	if os.Getenv(supervisorEnv) != "" {
		os.Exit(superviseForTest())
	}
	leaktest.Main(m)
}
