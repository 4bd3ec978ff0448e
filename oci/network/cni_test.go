package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cniNetwork writes the configuration of a network of Debian's plugins.
func cniNetwork(t testing.TB) (CNI, string) {
	t.Helper()
	leases := t.TempDir()
	c := CNI{ConfigDir: t.TempDir(), PluginDirs: DefaultCNIPluginDirs}
	writeConf(t, c, "lab.conflist", fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "lab", "plugins": [
		{"type": "bridge", "bridge": "labbr0", "isGateway": true, "ipMasq": true,
		 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
		 "dns": {"nameservers": ["10.77.7.7"], "search": ["lab.example"]}},
		{"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}]}`, leases))
	return c, leases
}

func writeConf(t testing.TB, c CNI, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(c.ConfigDir, name), []byte(text), 0o644))
}

func TestCNI(t *testing.T) {
	w := newWorld(t, false)
	must(t, setSysctl("ipv4/ip_forward", "1"))
	defer func() { shell(t, "ip link del labbr0; nft flush ruleset") }() // the plugin keeps its bridge, and iptables its chains
	c, leases := cniNetwork(t)
	for _, how := range []string{"closed", "killed"} {
		t.Run(how, func(t *testing.T) {
			ns := newNamespace(t)
			dir := filepath.Join(t.TempDir(), "cni")
			t.Setenv("ARVADOS_API_TOKEN", "secret")
			conn, err := c.Connect(t.Context(), "lab", uuid, dir, ns)
			must(t, err)
			if len(conn.Addresses) != 1 || !strings.HasPrefix(conn.Addresses[0].String(), "10.77.0.") {
				t.Errorf("addresses %v", conn.Addresses)
			}
			names, err := conn.Names(ns)
			must(t, err)
			if string(names.Resolv) != "nameserver 10.77.7.7\nsearch lab.example\n" {
				t.Errorf("resolv.conf %q", names.Resolv)
			}
			if got, err := ask(ns, farServer, w.tcp); err != nil || got != hostAddr.String() {
				t.Errorf("%q %v", got, err)
			}
			if held, _ := filepath.Glob(filepath.Join(leases, "lab", "10.77.*")); len(held) != 1 {
				t.Errorf("leases %v", held)
			}
			// The site has changed its mind meanwhile.
			must(t, os.Rename(filepath.Join(c.ConfigDir, "lab.conflist"), filepath.Join(c.ConfigDir, "gone")))
			if how == "closed" {
				must(t, conn.Close(context.Background()))
			} else {
				must(t, ns.Close())
				must(t, c.Cleanup(context.Background(), "lab", uuid, dir))
			}
			must(t, os.Rename(filepath.Join(c.ConfigDir, "gone"), filepath.Join(c.ConfigDir, "lab.conflist")))
			if held, _ := filepath.Glob(filepath.Join(leases, "lab", "10.77.*")); len(held) != 0 {
				t.Errorf("leases %v are left", held)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("state is left: %v", err)
			}
			must(t, c.Cleanup(context.Background(), "lab", uuid, dir))
		})
	}
}

// A plugin that fails is undone; it never sees the supervisor's environment.
func TestCNIPluginFails(t *testing.T) {
	newWorld(t, false)
	c, _ := cniNetwork(t)
	bin := t.TempDir()
	c.PluginDirs = append(c.PluginDirs, bin)
	seen := filepath.Join(t.TempDir(), "seen")
	must(t, os.WriteFile(filepath.Join(bin, "failing"), []byte("#!/bin/sh\n(echo $CNI_COMMAND; env) >> "+seen+"\n[ $CNI_COMMAND = DEL ] || { echo '{\"cniVersion\":\"0.4.0\",\"code\":101,\"msg\":\"no cable\"}'; exit 1; }\n"), 0o755))
	writeConf(t, c, "bad.conflist", `{"cniVersion": "0.4.0", "name": "bad", "plugins": [{"type": "failing"}]}`)
	t.Setenv("ARVADOS_API_TOKEN", "secret")
	dir := filepath.Join(t.TempDir(), "cni")
	_, err := c.Connect(t.Context(), "bad", uuid, dir, newNamespace(t))
	if err == nil || !strings.Contains(err.Error(), `CNI network "bad": plugin failing: no cable`) && !strings.Contains(err.Error(), "no cable") {
		t.Errorf("error %v", err)
	}
	text, err := os.ReadFile(seen)
	must(t, err)
	if !strings.Contains(string(text), "ADD\n") || !strings.Contains(string(text), "DEL\n") || strings.Contains(string(text), "secret") {
		t.Errorf("the plugin saw %s", text)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state is left: %v", err)
	}
}

func TestCNILookup(t *testing.T) {
	c, _ := cniNetwork(t)
	must(t, c.Lookup("lab"))
	writeConf(t, c, "x.conf", `{"cniVersion": "0.4.0", "name": "x", "type": "nowhere"}`)
	if err := c.Lookup("x"); err == nil || errors.Is(err, ErrNoCNINetwork) || !strings.Contains(err.Error(), `plugin "nowhere"`) {
		t.Errorf("plugin missing: %v", err)
	}
	if err := c.Lookup("other"); !errors.Is(err, ErrNoCNINetwork) {
		t.Errorf("unknown network: %v", err)
	}
	if err := (CNI{ConfigDir: "/nonexistent"}).Lookup("lab"); !errors.Is(err, ErrNoCNINetwork) {
		t.Errorf("no directory: %v", err)
	}
}
