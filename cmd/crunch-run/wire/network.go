package wire

import (
	"fmt"

	"crunch-oci/oci"
	"crunch-oci/supervisor/config"
)

// chooseNetwork gives containers with API access a network, the others none,
// unless the command line says that all get one. Which network it is, the
// command line says, and else the site (spec: lifecycle section 12). What is not
// available is an error: another network might be less isolated than was asked
// for.
func (j Job) chooseNetwork(api bool) (oci.Network, error) {
	if !api && j.Flags.EnableNetworking != "always" {
		return oci.NetworkNone, nil
	}
	kind := j.Flags.NetworkMode
	if kind == "" || kind == "default" {
		kind = j.Site.Network
	}
	switch kind {
	case config.NetworkNone:
		return oci.NetworkNone, nil
	case config.NetworkHost:
		return oci.NetworkHost, nil
	}
	return "", fmt.Errorf("the container needs a network, and network %q is not available in this version: use -network=host, or network: host in %s", kind, config.DefaultSiteFile)
}
