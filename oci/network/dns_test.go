package network

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestHostResolver(t *testing.T) {
	const upstream = "nameserver 10.0.0.53\nsearch hospital.example\n"
	for name, c := range map[string]struct {
		resolv, systemd string
		ipv6            bool
		want            string
		local           string
	}{
		"plain":              {resolv: "# made by hand\nsearch a.example b.example\nnameserver 10.1.1.1\nnameserver 10.1.1.2\noptions ndots:2\n", want: "nameserver 10.1.1.1\nnameserver 10.1.1.2\nsearch a.example b.example\noptions ndots:2\n"},
		"systemd's stub":     {resolv: "nameserver 127.0.0.53\noptions edns0 trust-ad\n", systemd: upstream, want: upstream},
		"stub and others":    {resolv: "nameserver 127.0.0.53\nnameserver 10.1.1.1\n", systemd: upstream, want: "nameserver 10.1.1.1\n"},
		"own server":         {resolv: "search x\nnameserver 127.0.0.1\nnameserver ::1\n", want: "search x\n", local: "127.0.0.1:53 [::1]:53"},
		"stub of own server": {resolv: "nameserver 127.0.0.53\n", systemd: "nameserver 127.0.0.1\n", local: "127.0.0.53:53"},
		"any means this":     {resolv: "nameserver 0.0.0.0\n", local: "127.0.0.1:53"},
		"IPv6, no way there": {resolv: "nameserver 2001:db8::53\n"},
		"IPv6":               {resolv: "nameserver 2001:db8::53\n", ipv6: true, want: "nameserver 2001:db8::53\n"},
		"link-local":         {resolv: "nameserver fe80::1%eth0\nnameserver 10.1.1.1\n", ipv6: true, want: "nameserver 10.1.1.1\n"},
		"garbage":            {resolv: "nameserver\nnameserver x.y\n;nameserver 1.1.1.1\n\x00\n", want: "\x00\n"},
		"none":               {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range map[string]string{"etc": c.resolv, "systemd": c.systemd} {
				if text != "" {
					must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644))
				}
			}
			r, err := hostResolver(filepath.Join(dir, "etc"), filepath.Join(dir, "systemd"), c.ipv6)
			must(t, err)
			var local []string
			for _, l := range r.Local {
				local = append(local, l.String())
			}
			if got := string(r.resolv(r.Servers)); got != c.want {
				// One order of lines is as good as another.
				t.Errorf("resolv.conf %q, want %q", got, c.want)
			}
			if got := strings.Join(local, " "); got != c.local {
				t.Errorf("local servers %q, want %q", got, c.local)
			}
		})
	}
}

// echoServer answers on the host's loopback, by UDP and TCP, with what it is
// asked, backwards.
func echoServer(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	must(t, err)
	t.Cleanup(func() { _ = u.Close() })
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort(bytes.ToUpper(buf[:n]), from)
		}
	}()
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 100)
				n, _ := c.Read(buf)
				_, _ = c.Write(bytes.ToUpper(buf[:n]))
			}()
		}
	}()
}

func TestRelay(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("in use", func(t *testing.T) {
		ns := newNamespace(t)
		silent := netip.MustParseAddrPort("127.0.0.77:53") // nobody is there
		local := netip.MustParseAddrPort("127.0.0.78:53")
		echoServer(t, local)
		n, err := Resolver{Local: []netip.AddrPort{silent, local}, Other: "search x\n"}.names(ns)
		must(t, err)
		defer func() { must(t, n.Close()) }()
		if string(n.Resolv) != "nameserver 127.0.0.11\nsearch x\n" || len(n.Notes) != 1 {
			t.Errorf("%q %q", n.Resolv, n.Notes)
		}
		for _, network := range []string{"udp", "tcp"} {
			var got []byte
			must(t, inside(ns, func() error {
				c, err := net.DialTimeout(network, relayAddr.String(), patience)
				if err != nil {
					return err
				}
				defer c.Close()
				if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
					return err
				}
				if _, err := c.Write([]byte("question")); err != nil {
					return err
				}
				got = make([]byte, 8)
				_, err = c.Read(got)
				return err
			}))
			if string(got) != "QUESTION" {
				t.Errorf("by %s: %q", network, got)
			}
		}
	})
}

func FuzzResolv(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\nsearch x\noptions y\n"), true)
	f.Fuzz(func(t *testing.T, text []byte, ipv6 bool) {
		r := parseResolv(text, ipv6)
		for _, s := range r.Servers {
			if s.IsLoopback() || s.Zone() != "" {
				t.Errorf("server %s", s)
			}
		}
		if strings.Contains(r.Other, "nameserver") && !bytes.Contains(text, []byte("nameserver")) {
			t.Error(r.Other)
		}
	})
}
