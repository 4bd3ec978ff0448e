package network

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// Where a host says which name servers it uses.
const (
	resolvConf = "/etc/resolv.conf"
	// systemdResolv has the servers that systemd-resolved asks when
	// /etc/resolv.conf names only systemd-resolved itself, on the host's loopback
	// (systemd-resolved.service(8)).
	systemdResolv = "/run/systemd/resolve/resolv.conf"
)

// maxResolv bounds what is read of the files, in bytes.
const maxResolv = 64 << 10

// Resolver is how a host finds names, as far as a container can do the same.
type Resolver struct {
	// Servers are what the container can reach.
	Servers []netip.Addr
	// Local are servers on the host's own loopback, which it cannot; nil unless
	// there are no others.
	Local []netip.AddrPort
	// Other are the remaining lines: search domains and options.
	Other string
}

// HostResolver reads the host's resolver configuration. ipv6 tells whether the
// container can reach IPv6 addresses.
func HostResolver(ipv6 bool) (Resolver, error) {
	return hostResolver(resolvConf, systemdResolv, ipv6)
}

func hostResolver(path, systemd string, ipv6 bool) (Resolver, error) {
	text, err := readBounded(path)
	if err != nil {
		return Resolver{}, err
	}
	r := parseResolv(text, ipv6)
	if len(r.Servers) > 0 || len(r.Local) == 0 {
		return r, nil
	}
	text, err = readBounded(systemd)
	if err != nil {
		return Resolver{}, err
	}
	if behind := parseResolv(text, ipv6); len(behind.Servers) > 0 {
		if behind.Other == "" {
			behind.Other = r.Other
		}
		return behind, nil
	}
	return r, nil
}

// readBounded reads a file; a missing one is empty.
func readBounded(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if len(text) > maxResolv {
		text = text[:maxResolv]
	}
	return text, err
}

// parseResolv sorts the lines of a resolv.conf(5).
func parseResolv(text []byte, ipv6 bool) (r Resolver) {
	var other []string
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		if len(words) == 0 || strings.ContainsAny(words[0][:1], "#;") {
			continue
		}
		if words[0] != "nameserver" {
			other = append(other, strings.Join(words, " "))
			continue
		}
		if len(words) < 2 {
			continue
		}
		a, err := netip.ParseAddr(words[1])
		a = a.Unmap()
		switch {
		case err != nil:
		case a.IsLoopback(), a.IsUnspecified(): // resolv.conf(5): both mean this host
			if a.IsUnspecified() {
				a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
			r.Local = append(r.Local, netip.AddrPortFrom(a, dnsPort))
		case a.Zone() != "", a.IsLinkLocalUnicast(): // of an interface that is not the container's
		case a.Is6() && !ipv6:
		default:
			r.Servers = append(r.Servers, a)
		}
	}
	if len(r.Servers) > 0 {
		r.Local = nil
	}
	if len(other) > 0 {
		r.Other = strings.Join(other, "\n") + "\n"
	}
	return r
}

// resolv is the text of a resolv.conf with these servers.
func (r Resolver) resolv(servers []netip.Addr) []byte {
	var b strings.Builder
	for _, s := range servers {
		b.WriteString("nameserver " + s.String() + "\n")
	}
	b.WriteString(r.Other)
	return []byte(b.String())
}
