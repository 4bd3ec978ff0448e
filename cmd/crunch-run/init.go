package main

import (
	"os"
	"runtime"

	// Without it cgroup device rules are refused (opencontainers/cgroups).
	_ "github.com/opencontainers/cgroups/devices"
	// The C part of a container's init: it runs before the Go runtime when this
	// program is executed again as that, and joins the namespaces.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"

	"crunch-oci/oci"
)

// A container's init is this program, executed again by libcontainer. It must
// stay on the thread that the C part prepared, so it never reaches main.
func init() {
	if oci.IsInit(os.Args) {
		runtime.GOMAXPROCS(1)
		runtime.LockOSThread()
		oci.Init()
	}
}
