package network

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ifName is what the container's interface is called inside: what statistics of
// jobs look for.
const ifName = "eth0"

// ErrNoAddress says that every address of the bridge's subnet is leased.
var ErrNoAddress = errors.New("every address of the subnet is in use: set network-subnet to a larger one")

// Connection is a container on the bridge.
type Connection struct {
	*Use
	// Addresses are the container's own, IPv4 first.
	Addresses []netip.Addr
	// IPv6 tells whether the container can reach IPv6 addresses.
	IPv6 bool

	id string
}

// Connect connects a container's network namespace ns to the bridge: it gets an
// interface called eth0, an address, and the default route. What an earlier
// container with the same id has left is removed; the caller must know that it
// is dead.
func (b *Bridge) Connect(ctx context.Context, id string, ns *os.File) (_ *Connection, err error) {
	if err := refuseOwnNetns(ns); err != nil {
		return nil, fmt.Errorf("connect to bridge %s: %w", b.cfg.Bridge, err)
	}
	u, err := b.begin(ctx)
	if err != nil {
		return nil, err
	}
	c := &Connection{Use: u, id: id}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("connect to bridge %s: %w", b.cfg.Bridge, err), c.Close(context.WithoutCancel(ctx)))
		}
	}()
	addr, err := c.plug(ns)
	if err = errors.Join(err, u.state.unlock()); err != nil {
		return nil, err
	}
	c.Addresses = []netip.Addr{addr}
	if u.info.ula.IsValid() {
		c.IPv6 = true
		c.Addresses = append(c.Addresses, with4(u.info.ula, addr))
	}
	return c, c.configure(ns)
}

// Close unplugs the container, which takes its interface from it.
func (c *Connection) Close(ctx context.Context) error {
	return errors.Join(c.bridge.unplug(c.id), c.Use.Close(ctx))
}

// plug leases an address and makes the pair of interfaces, one end on the
// bridge, the other in ns. The caller holds the lock: addresses are leased by
// making the interface whose alias names them.
func (c *Connection) plug(ns *os.File) (netip.Addr, error) {
	h, err := handle()
	if err != nil {
		return netip.Addr{}, err
	}
	defer h.Close()
	name := portName(c.id)
	if old, err := h.LinkByName(name); err == nil { // of an earlier run, whose namespace is still dying
		if err := h.LinkDel(old); err != nil && !isNotFound(err) {
			return netip.Addr{}, fmt.Errorf("remove interface %s: %w", name, err)
		}
	}
	links, err := listLinks(h)
	if err != nil {
		return netip.Addr{}, err
	}
	addr, err := pick(c.info.subnet, c.id, leases(links, c.info.index))
	if err != nil {
		return netip.Addr{}, err
	}
	return addr, c.makePort(h, name, addr, ns)
}

// makePort makes the pair of interfaces. The host's end is called name and leases
// addr.
func (c *Connection) makePort(h *netlink.Handle, name string, addr netip.Addr, ns *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = name, c.info.mtu, c.info.index
	port := &netlink.Veth{
		LinkAttrs: attrs, PeerName: ifName, PeerHardwareAddr: hardwareAddr(addr),
		PeerNamespace: netlink.NsFd(ns.Fd()),
	}
	if err := h.LinkAdd(port); err != nil {
		return explainLink("make a pair of interfaces", err)
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	// This is the lease. A process that is killed before has not used the address.
	if err := h.LinkSetAlias(link, leaseAlias(addr, c.id)); err != nil {
		return fmt.Errorf("name interface %s: %w", name, err)
	}
	if err := c.bridge.guard(h, c.info, name); unsupported(err) {
		c.Notes = append(c.Notes, fmt.Sprintf("containers can pretend to have each other's addresses: %v (the kernel needs CONFIG_NF_TABLES_NETDEV)", err))
	} else if err != nil {
		return err
	}
	// The host's end is a port of the bridge and needs no IPv6 address.
	if err := setSysctl("ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil && !isNotExist(err) {
		return fmt.Errorf("switch off IPv6 on %s: %w", name, err)
	}
	// A container may reach itself by an address of the host that is forwarded to it:
	// such packets leave by the port they came in by, which is off by default.
	if err := h.LinkSetHairpin(link, true); err != nil {
		return fmt.Errorf("set hairpin mode on %s: %w", name, err)
	}
	if c.bridge.cfg.NoPeers {
		if err := h.LinkSetIsolated(link, true); err != nil {
			return fmt.Errorf("keep %s from the other containers: %w (Linux 4.18 or later is needed)", name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring interface %s up: %w", name, err)
	}
	return nil
}

// unplug removes the container's interface; its other end goes with it. Nothing
// to remove is no error.
func (b *Bridge) unplug(id string) error {
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	name := portName(id)
	link, err := h.LinkByName(name)
	if err == nil && link.Type() == "veth" {
		err = h.LinkDel(link)
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return b.unguard(name)
}

// configure brings up the container's end.
func (c *Connection) configure(ns *os.File) error {
	// Before the interface is up, so that no address is probed for and no
	// advertisement believed.
	err := inside(ns, func() error {
		set := map[string]string{"accept_ra": "0", "accept_dad": "0"}
		if !c.IPv6 {
			set = map[string]string{"disable_ipv6": "1"}
		}
		for name, value := range set {
			if err := setSysctl("ipv6/conf/"+ifName+"/"+name, value); err != nil && !isNotExist(err) {
				return fmt.Errorf("set net/ipv6/conf/%s/%s: %w", ifName, name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket in the container's network namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("find interface %s in the container: %w", ifName, err)
	}
	for i, a := range c.Addresses {
		addr := &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(a, c.info.subnet.Bits()))}
		if i > 0 {
			addr = &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(a, c.info.ula.Bits())), Flags: unix.IFA_F_NODAD}
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("give the container address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring interface %s up in the container: %w", ifName, err)
	}
	for i, g := range c.Gateways {
		dst := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if i > 0 {
			dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: g.AsSlice()}); err != nil {
			return fmt.Errorf("give the container the route through %s: %w", g, err)
		}
	}
	return nil
}

// portName is the name of the host's end of a container's pair of interfaces: "cr"
// and the last 12 characters of the UUID, which are the container's host name too.
func portName(id string) string {
	const n = 12
	if len(id) >= n && strings.Trim(id[len(id)-n:], "abcdefghijklmnopqrstuvwxyz0123456789") == "" {
		return "cr" + id[len(id)-n:]
	}
	sum := sha256.Sum256([]byte(id))
	return "cr" + hex.EncodeToString(sum[:n/2])
}

func leaseAlias(a netip.Addr, id string) string { return fmt.Sprintf("%s %s %s", owner, a, id) }

// leases are the addresses that the interfaces on the bridge stand for.
func leases(links []netlink.Link, bridge int) map[netip.Addr]bool {
	taken := make(map[netip.Addr]bool)
	for _, a := range leasesByPort(links, bridge) {
		taken[a] = true
	}
	return taken
}

// leasesByPort are the same addresses by the names of the interfaces.
func leasesByPort(links []netlink.Link, bridge int) map[string]netip.Addr {
	ports := make(map[string]netip.Addr)
	for _, l := range links {
		f := strings.Fields(l.Attrs().Alias)
		if l.Attrs().MasterIndex != bridge || len(f) < 2 || f[0] != owner {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.Is4() {
			ports[l.Attrs().Name] = a
		}
	}
	return ports
}

// pick chooses a free address of the gateway's subnet. Where it begins to look
// depends on the container, so that an address is seldom used again soon: late
// packets to its last owner would find the new one.
func pick(gateway netip.Prefix, id string, taken map[netip.Addr]bool) (netip.Addr, error) {
	base := gateway.Masked().Addr()
	size := 1 << (32 - gateway.Bits())
	sum := sha256.Sum256([]byte(id))
	start := int(binary.BigEndian.Uint32(sum[:4])) % size
	for i := range size {
		n := (start + i) % size
		a := plus(base, n)
		if n == 0 || n == size-1 || a == gateway.Addr() || taken[a] {
			continue
		}
		return a, nil
	}
	return netip.Addr{}, ErrNoAddress
}
