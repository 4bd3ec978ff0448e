package validation

import (
	"os"
	"testing"

	_ "github.com/opencontainers/cgroups/devices"           // device rules
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the init's C part

	"crunch-oci/oci"
)

// The test binary is also a runtime with a command line, the keeper of each of
// its containers, and their init.
func TestMain(m *testing.M) {
	if oci.IsInit(os.Args) {
		oci.Init()
	}
	if dir := os.Getenv(stateEnv); dir != "" {
		os.Exit(runtimeMain(dir, os.Args[1:]))
	}
	os.Exit(m.Run())
}
