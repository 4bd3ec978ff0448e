package wire

import (
	"os"
	"path/filepath"
	"testing"

	"crunch-oci/arvados"
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

// A cluster on the node's own loopback is out of a container's reach, which is
// better said than found out.
func TestAPIHostOnLoopback(t *testing.T) {
	for host, noted := range map[string]bool{"127.0.0.1:8000": true, "[::1]:8000": true, "192.0.2.7:443": false, "no.such.host.invalid": false} {
		j := Job{Cluster: arvados.Config{Host: host}}
		n := newConnector(t.Context(), j, nil)
		<-n.api
		if _, note := n.apiHost(); (note != "") != noted {
			t.Errorf("%s: %q", host, note)
		}
	}
	// What the container is told may be another address than ours.
	n := newConnector(t.Context(), Job{Cluster: arvados.Config{Host: "127.0.0.1:8000"}, ContainerAPIHost: "172.30.0.1:8000"}, nil)
	<-n.api
	if _, note := n.apiHost(); note != "" {
		t.Error(note)
	}
}
