package sshd_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/gateway"
	"crunch-oci/oci"
)

type target struct {
	Host       string
	Port       uint32
	Originator string
	OriginPort uint32
}

func open(c *ssh.Client, host string, port uint32) (ssh.Channel, error) {
	ch, reqs, err := c.OpenChannel("direct-tcpip", ssh.Marshal(target{host, port, "127.0.0.1", 5}))
	if err == nil {
		go ssh.DiscardRequests(reqs)
	}
	return ch, err
}

func TestForwardVectors(t *testing.T) {
	ctr := newContainer(t, services)
	serving(t, ctr, 7000)
	c := newDoor(t, wire.Inside(ctr), gateway.SSHOptions{}).client()
	for _, v := range vectors[[]struct {
		Target, Stderr string
		Allowed        bool
	}](t, "direct_tcpip") {
		ch, err := open(c, v.Target, 7000)
		if !v.Allowed {
			var refused *ssh.OpenChannelError
			if !errors.As(err, &refused) || refused.Reason != ssh.Prohibited || refused.Message+"\n" != v.Stderr {
				t.Errorf("%q: %v", v.Target, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", v.Target, err)
			continue
		}
		// The end of what is sent is passed on, and the answer still comes.
		_, err = io.WriteString(ch, "over the wire")
		must(t, err)
		must(t, ch.CloseWrite())
		if b, err := io.ReadAll(ch); err != nil || string(b) != "over the wire" {
			t.Errorf("%q: %q, %v", v.Target, b, err)
		}
	}
}

func TestForwardFailures(t *testing.T) {
	ctr := newContainer(t, idle)
	c := newDoor(t, wire.Inside(ctr), gateway.SSHOptions{}).client()
	host := newDoor(t, wire.Inside(newContainer(t, idle, func(q *oci.Request) { q.Network, q.Hostname = oci.NetworkHost, "" })), gateway.SSHOptions{}).client()
	none := newDoor(t, new(gateway.Deferred), gateway.SSHOptions{}).client()
	// A service of the host, which nobody in the container may reach.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	port := uint32(l.Addr().(*net.TCPAddr).Port)
	for _, tc := range []struct {
		c    *ssh.Client
		port uint32
		text string
	}{
		{c, 9, "127.0.0.1:9: connection refused"},
		{c, port, "connection refused"},
		{c, 0, "port 0 is not between"},
		{c, 65536 + 80, "is not between"},
		{host, port, "container has no IP address: container has no IP address distinct from host"},
		{none, 80, "container has no IP address: the container has not been started"},
	} {
		_, err := open(tc.c, "localhost", tc.port)
		if err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("port %d: %v, want %q", tc.port, err, tc.text)
		}
	}
	_, _, err = c.OpenChannel("direct-tcpip", []byte("x"))
	if err == nil || !strings.Contains(err.Error(), "unmarshal direct-tcpip extradata: ") {
		t.Errorf("%v", err)
	}
}

// Whoever closes first, nothing stays open.
func TestForwardsLeaveNothing(t *testing.T) {
	ctr := newContainer(t, services)
	serving(t, ctr, 7000)
	d := newDoor(t, wire.Inside(ctr), gateway.SSHOptions{})
	c := d.client()
	round := func(i int) {
		ch, err := open(c, "localhost", 7000)
		must(t, err)
		_, err = ch.Write([]byte("x"))
		must(t, err)
		if i%3 == 0 {
			must(t, ch.CloseWrite())
			_, err = io.ReadAll(ch)
			must(t, err)
		}
		if i%3 != 2 {
			_ = ch.Close() // the other side may have been faster
		}
	}
	round(0)
	files := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(all)
	}
	before := files()
	for i := range 100 {
		round(i)
	}
	c.Close()
	waitFor(t, fmt.Sprintf("%d descriptors", before), func() bool { return files() <= before })
	before = files()
	c = d.client()
	for i := range 20 {
		if i%2 == 0 {
			exec(t, c, "true", nil)
		} else {
			s, _, out := terminal(t, c, "true")
			_, _ = io.Copy(io.Discard, out)
			_ = s.Wait()
		}
	}
	c.Close()
	waitFor(t, fmt.Sprintf("%d descriptors", before), func() bool { return files() <= before })
}
