package network

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// handle opens a socket to the kernel's table of interfaces and routes.
func handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return h, nil
}

// dump asks for a list until the kernel gives all of it: a change meanwhile may make
// it incomplete (NLM_F_DUMP_INTR). It gives up when changes never end.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	const most = 100
	for range most {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}

// listLinks lists all interfaces.
func listLinks(h *netlink.Handle) ([]netlink.Link, error) {
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return links, nil
}

// listAddrs lists the addresses of an interface, or with nil of all.
func listAddrs(h *netlink.Handle, link netlink.Link, family int) ([]netlink.Addr, error) {
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(link, family) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return addrs, nil
}

// listRoutes lists the routes that match.
func listRoutes(h *netlink.Handle, family int, match *netlink.Route, mask uint64) ([]netlink.Route, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return h.RouteListFiltered(family, match, mask) })
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	return routes, nil
}

// isNotFound tells whether err says that there is no such interface.
func isNotFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

// isNotExist tells whether err says that there is no such file: of a sysctl, that the
// kernel lacks IPv6, or the module.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// explainLink says what the kernel's refusal to make an interface means.
func explainLink(what string, err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTSUP):
		return fmt.Errorf("%s: %w (the kernel lacks that kind of interface: modules bridge and veth are needed)", what, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w (CAP_NET_ADMIN is needed)", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// uplink is the host's way to the world.
type uplink struct {
	mtu  int
	ipv6 bool // there is an IPv6 default route
	// byRA are the interfaces whose IPv6 default route was advertised by a router
	// and is kept up by the kernel.
	byRA []int
}

// defaultMTU is Ethernet's, for a host without a default route.
const defaultMTU = 1500

// findUplink looks at the default routes: the smallest MTU of their interfaces
// is what fits through all of them.
func findUplink(h *netlink.Handle, bridge string) (uplink, error) {
	var up uplink
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := listRoutes(h, family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		if err != nil {
			if family == netlink.FAMILY_V6 {
				continue // a kernel without IPv6
			}
			return up, err
		}
		for _, r := range routes {
			if r.Type != unix.RTN_UNICAST {
				continue
			}
			if family == netlink.FAMILY_V6 {
				up.ipv6 = true
				if r.Protocol == unix.RTPROT_RA {
					up.byRA = append(up.byRA, r.LinkIndex)
				}
			}
			indexes := []int{r.LinkIndex}
			for _, hop := range r.MultiPath {
				indexes = append(indexes, hop.LinkIndex)
			}
			for _, i := range indexes {
				link, err := h.LinkByIndex(i)
				if i == 0 || err != nil || link.Attrs().Name == bridge {
					continue
				}
				if m := link.Attrs().MTU; up.mtu == 0 || m < up.mtu {
					up.mtu = m
				}
			}
			if r.MTU > 0 && (up.mtu == 0 || r.MTU < up.mtu) {
				up.mtu = r.MTU
			}
		}
	}
	// The smallest MTU that IPv6 works with is the smallest we believe.
	if up.mtu < 1280 || up.mtu > 65535 {
		up.mtu = defaultMTU
	}
	return up, nil
}
