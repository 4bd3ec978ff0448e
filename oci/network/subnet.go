package network

import (
	"crypto/sha256"
	"errors"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// subnetBits is the size of a chosen IPv4 subnet: room for 4093 containers.
const subnetBits = 20

// pools are the private ranges that a subnet is chosen from, in this order:
// first those that least often lie behind a default route unseen. The last is
// for benchmarks (RFC 2544), which nothing else uses.
var pools = []netip.Prefix{
	netip.MustParsePrefix("172.30.0.0/16"),
	netip.MustParsePrefix("172.28.0.0/16"),
	netip.MustParsePrefix("192.168.192.0/18"),
	netip.MustParsePrefix("10.213.0.0/16"),
	netip.MustParsePrefix("10.89.0.0/16"),
	netip.MustParsePrefix("172.22.0.0/16"),
	netip.MustParsePrefix("100.117.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
}

// ErrNoSubnet says that no private range is free of the host's routes.
var ErrNoSubnet = errors.New("every private address range is in use by the host's routes: set network-subnet")

// chooseSubnet returns the first subnet of the pools that overlaps none of the
// networks in use. The same answer for the same routes.
func chooseSubnet(used []netip.Prefix) (netip.Prefix, error) {
	for _, pool := range pools {
		size := 1 << (32 - subnetBits)
		for at := pool.Masked().Addr(); pool.Contains(at); at = plus(at, size) {
			candidate := netip.PrefixFrom(at, subnetBits)
			free := true
			for _, u := range used {
				if u.Overlaps(candidate) {
					free = false
					break
				}
			}
			if free {
				return candidate, nil
			}
		}
	}
	return netip.Prefix{}, ErrNoSubnet
}

// plus adds to an IPv4 address.
func plus(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// shortestRoute is the length below which a route says nothing about who uses
// an address: the default route, and the halves into which VPNs divide it.
const shortestRoute = 4

// usedNetworks are the destinations of the host's IPv4 routes, in all tables,
// but those through the interface called except, and the addresses to be left
// alone.
func usedNetworks(h *netlink.Handle, except string, avoid []netip.Addr) ([]netip.Prefix, error) {
	skip := -1
	if link, err := h.LinkByName(except); err == nil {
		skip = link.Attrs().Index
	}
	routes, err := listRoutes(h, netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	var used []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || r.LinkIndex == skip && skip > 0 {
			continue
		}
		if p, ok := toPrefix(r.Dst); ok && p.Bits() >= shortestRoute {
			used = append(used, p)
		}
	}
	// Interfaces that are down have addresses and no routes yet.
	addrs, err := listAddrs(h, nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if a.LinkIndex == skip {
			continue
		}
		if p, ok := toPrefix(a.IPNet); ok {
			used = append(used, p.Masked())
		}
	}
	for _, a := range avoid {
		if a = a.Unmap(); a.Is4() {
			used = append(used, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return used, nil
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// ulaPrefix is this node's unique local IPv6 subnet for the bridge (RFC 4193):
// the same every time, and another one on another node.
func ulaPrefix(bridge string) netip.Prefix {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(id) < 32 {
		name, _ := os.Hostname()
		id = append(id, name...)
	}
	sum := sha256.Sum256(append(append([]byte("crunch-run bridge "), bridge...), id...))
	var b [16]byte
	b[0] = 0xfd
	copy(b[1:8], sum[:7]) // 40 bits of global id, 16 of subnet
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// with4 puts an IPv4 address into the lower bits of an IPv6 subnet, so that one
// lease is both.
func with4(p netip.Prefix, a netip.Addr) netip.Addr {
	b, v4 := p.Masked().Addr().As16(), a.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}

// hardwareAddr is the MAC address that goes with an IPv4 address: who gets an
// address again is known to its neighbours.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x43, b[0], b[1], b[2], b[3]}
}
