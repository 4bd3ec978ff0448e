package wire

import (
	"testing"

	"crunch-oci/oci"
	"crunch-oci/supervisor/config"
)

func TestChooseNetwork(t *testing.T) {
	for _, c := range []struct {
		api                bool
		enable, mode, site string
		want               oci.Network // "": an error
	}{
		{false, "default", "default", "host", oci.NetworkNone},
		{false, "default", "host", "host", oci.NetworkNone}, // the mode alone enables nothing
		{true, "default", "default", "host", oci.NetworkHost},
		{true, "default", "default", "none", oci.NetworkNone},
		{true, "default", "none", "host", oci.NetworkNone},
		{true, "default", "host", "none", oci.NetworkHost},
		{true, "default", "", "host", oci.NetworkHost},
		{false, "always", "default", "host", oci.NetworkHost},
		{true, "default", "default", "bridge", ""},
		{true, "default", "bridge", "host", ""}, // never less isolated than asked for
		{true, "default", "weave", "host", ""},
	} {
		j := Job{Site: config.Site{Network: c.site}, Flags: config.Flags{EnableNetworking: c.enable, NetworkMode: c.mode}}
		got, err := j.chooseNetwork(c.api)
		if got != c.want || (err == nil) == (c.want == "") {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
