package oci

import "crunch-oci/oci/internal/libct"

// IsInit tells whether this process has been started to become a container's
// first process; then Init must be called, before anything else is done.
func IsInit(args []string) bool { return libct.IsInit(args) }

// Init becomes a container's first process. It does not return.
func Init() { libct.Init() }
