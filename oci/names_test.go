package oci_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"crunch-oci/oci"
)

// What is known of a container's network only when it exists is there when it
// starts, also where the image has links in the place.
func TestSetNames(t *testing.T) {
	id := newID()
	req := newRequest(t, id, "cat /etc/hosts /etc/resolv.conf")
	req.Network = oci.NetworkPrivate
	must(t, os.Symlink("../run/elsewhere", filepath.Join(req.RootfsPath, "etc/resolv.conf")))
	b, err := create(t, req, nil)
	must(t, err)
	must(t, oci.SetNames(b.bundle, oci.Names{
		Addresses: []netip.Addr{netip.MustParseAddr("172.30.0.5"), netip.MustParseAddr("fd00::5")},
		Hosts:     []string{"10.1.2.3\tapi.example"}, Resolv: []byte("nameserver 10.0.0.53\n"),
	}))
	must(t, b.ctr.Start(t.Context()))
	b.wait()
	want := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n172.30.0.5\tbox\nfd00::5\tbox\n10.1.2.3\tapi.example\nnameserver 10.0.0.53\n"
	if got := b.stdout.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Who mounts /etc has other files, which are nobody else's to change.
func TestSetNamesWithOwnEtc(t *testing.T) {
	etc := t.TempDir()
	write(t, filepath.Join(etc, "hosts"), "mine\n")
	req := newRequest(t, newID(), "cat /etc/hosts")
	req.Network, req.Mounts = oci.NetworkPrivate, []oci.Mount{{Source: etc, Target: "/etc"}}
	b, err := create(t, req, nil)
	must(t, err)
	must(t, oci.SetNames(b.bundle, oci.Names{Resolv: []byte("nameserver 10.0.0.53\n")}))
	must(t, b.ctr.Start(t.Context()))
	b.wait()
	if got := b.stdout.String(); got != "mine\n" {
		t.Errorf("got %q", got)
	}
}
