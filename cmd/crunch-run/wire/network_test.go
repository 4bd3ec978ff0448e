package wire

import (
	"os"
	"path/filepath"
	"testing"

	"crunch-oci/oci"
	"crunch-oci/supervisor/config"
)

func TestChooseNetwork(t *testing.T) {
	networks, plugins := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{
		filepath.Join(networks, "lab.conf"): `{"cniVersion": "0.4.0", "name": "lab", "type": "wires"}`,
		filepath.Join(plugins, "wires"):     "#!/bin/sh\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
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
		{true, "default", "default", "bridge", oci.NetworkPrivate},
		{true, "default", "bridge", "host", oci.NetworkPrivate},
		{true, "default", "default", "cni:lab", oci.NetworkPrivate},
		{true, "default", "lab", "bridge", oci.NetworkPrivate}, // as docker run takes it
		{true, "default", "default", "cni:other", ""},          // never less isolated than asked for
		{true, "default", "weave", "host", ""},
	} {
		j := Job{Site: config.Site{Network: c.site, CNIConfigDir: networks, CNIPluginDirs: []string{plugins}}, Flags: config.Flags{EnableNetworking: c.enable, NetworkMode: c.mode}}
		chosen, err := (&connector{Job: j}).choose(c.api)
		got := chosen.Kind
		if (chosen.Connect != nil) != (got == oci.NetworkPrivate) {
			t.Errorf("%+v: to be connected: %v", c, chosen.Connect != nil)
		}
		if got != c.want || (err == nil) == (c.want == "") {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
