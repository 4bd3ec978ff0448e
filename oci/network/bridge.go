package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultBridge is the name of the bridge.
const DefaultBridge = "crunch0"

// owner marks our interfaces (ip link show: "alias crunch-run ...").
const owner = "crunch-run"

// Config says which bridge there shall be.
type Config struct {
	// StateDir is an absolute directory on a file system that does not survive a
	// reboot; all users of the bridge name the same. It is made, and removed with
	// the bridge.
	StateDir string
	// Bridge is the bridge's name: DefaultBridge if empty.
	Bridge string
	// Subnet is the containers' IPv4 subnet; invalid: one is chosen.
	Subnet netip.Prefix
	// NoPeers keeps containers from each other.
	NoPeers bool
	// Avoid are addresses that a chosen subnet shall not contain, such as those
	// of name servers behind the default route.
	Avoid []netip.Addr
}

// Bridge connects containers. The zero value is of no use.
type Bridge struct{ cfg Config }

// New returns the bridge described. Nothing is made yet.
func New(cfg Config) (*Bridge, error) {
	if cfg.Bridge == "" {
		cfg.Bridge = DefaultBridge
	}
	if err := CheckName(cfg.Bridge); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(cfg.StateDir) {
		return nil, fmt.Errorf("bridge %s: state directory %q is not an absolute path", cfg.Bridge, cfg.StateDir)
	}
	if cfg.Subnet.IsValid() {
		if err := CheckSubnet(cfg.Subnet); err != nil {
			return nil, err
		}
	}
	return &Bridge{cfg}, nil
}

// CheckName says what is wrong with the name of a bridge.
func CheckName(name string) error {
	const most = unix.IFNAMSIZ - 1
	bad := func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
	}
	if name == "" || len(name) > most || strings.IndexFunc(name, bad) >= 0 || strings.Trim(name, ".") == "" {
		return fmt.Errorf("%q cannot be the name of a bridge: at most %d letters, digits and the characters -_.", name, most)
	}
	return nil
}

// CheckSubnet says what is wrong with a subnet for containers.
func CheckSubnet(p netip.Prefix) error {
	switch {
	case !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 29:
		return fmt.Errorf("subnet %s: must be an IPv4 network of 8 to 29 bits, such as 172.30.0.0/20", p)
	case p.Masked() != p:
		return fmt.Errorf("subnet %s: the network's address is %s", p, p.Masked())
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified():
		return fmt.Errorf("subnet %s cannot be given to containers", p)
	}
	return nil
}

// Use keeps the bridge in place until Close.
type Use struct {
	// Gateways are the bridge's own addresses, IPv4 first: the host, as
	// containers see it.
	Gateways []netip.Addr
	// Notes are for the log, a line each: what was changed on the host, and what
	// is in the way of the containers' packets.
	Notes []string

	bridge *Bridge
	state  *stateFile
	info   *bridgeInfo
}

// bridgeInfo is the bridge as it is on the host now.
type bridgeInfo struct {
	index  int
	subnet netip.Prefix // with the gateway's address
	ula    netip.Prefix // likewise; invalid: no IPv6
	mtu    int
}

// Open makes the bridge and its rules, if they are not there or not complete,
// and keeps them until Close.
func (b *Bridge) Open(ctx context.Context) (*Use, error) {
	u, err := b.begin(ctx)
	if err != nil {
		return nil, err
	}
	if err := u.state.unlock(); err != nil {
		return nil, errors.Join(err, b.leave(u.state))
	}
	return u, nil
}

// begin is Open, but leaves the lock of the state file held.
func (b *Bridge) begin(ctx context.Context) (*Use, error) {
	state, err := openState(ctx, b.cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", b.cfg.Bridge, err)
	}
	u := &Use{bridge: b, state: state}
	if err = state.use(); err == nil {
		u.info, u.Notes, err = b.ensure()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bridge %s: %w", b.cfg.Bridge, err), b.leave(state))
	}
	u.Gateways = []netip.Addr{u.info.subnet.Addr()}
	if u.info.ula.IsValid() {
		u.Gateways = append(u.Gateways, u.info.ula.Addr())
	}
	return u, nil
}

// Close ends the use. The last one removes bridge and rules.
func (u *Use) Close(ctx context.Context) error {
	if err := u.state.lock(ctx); err != nil {
		return errors.Join(fmt.Errorf("bridge %s: %w", u.bridge.cfg.Bridge, err), u.state.close())
	}
	return u.bridge.leave(u.state)
}

// leave closes the state file, of which the caller holds the lock, and before that
// removes the bridge and its rules if nobody else uses them.
func (b *Bridge) leave(state *stateFile) error {
	last, err := state.last()
	if last && err == nil {
		var removed bool
		if removed, err = b.remove(); removed && err == nil {
			err = state.remove()
		}
	}
	if err = errors.Join(err, state.close()); err != nil {
		return fmt.Errorf("remove bridge %s: %w", b.cfg.Bridge, err)
	}
	return nil
}

// remove removes rules and bridge, unless there are interfaces on the bridge: they
// belong to somebody with another state directory, or were put there by hand.
func (b *Bridge) remove() (removed bool, err error) {
	h, err := handle()
	if err != nil {
		return false, err
	}
	defer h.Close()
	link, err := h.LinkByName(b.cfg.Bridge)
	if isNotFound(err) {
		return true, b.removeRules()
	}
	if err != nil {
		return false, fmt.Errorf("find interface: %w", err)
	}
	if !ours(link) {
		return true, b.removeRules()
	}
	links, err := listLinks(h)
	if err != nil {
		return false, err
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == link.Attrs().Index {
			return false, nil
		}
	}
	if err := b.removeRules(); err != nil {
		return false, err
	}
	if err := h.LinkDel(link); err != nil && !isNotFound(err) {
		return false, fmt.Errorf("remove interface: %w", err)
	}
	return true, nil
}

// Cleanup removes what a dead process has left of connection id, if anything, and
// bridge and rules if it was their last user. For a process that only had a Use, id
// may be anything that is no container's.
func (b *Bridge) Cleanup(ctx context.Context, id string) error {
	if _, err := os.Lstat(b.cfg.StateDir); isNotExist(err) {
		return nil // never used, or removed by the last user
	} else if err != nil {
		return fmt.Errorf("bridge %s: %w", b.cfg.Bridge, err)
	}
	state, err := openState(ctx, b.cfg.StateDir)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", b.cfg.Bridge, err)
	}
	return errors.Join(b.unplug(id), b.leave(state))
}

// Preview returns the subnet that the bridge has, or would get, and an error if
// it cannot be made. Nothing is changed.
func (b *Bridge) Preview() (netip.Prefix, error) {
	h, err := handle()
	if err != nil {
		return netip.Prefix{}, err
	}
	defer h.Close()
	link, err := h.LinkByName(b.cfg.Bridge)
	switch {
	case isNotFound(err):
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("find interface: %w", err)
	default:
		addrs, err := listAddrs(h, link, netlink.FAMILY_V4)
		if err != nil {
			return netip.Prefix{}, err
		}
		if !ours(link) && (link.Type() != "bridge" || link.Attrs().Alias != "" || len(addrs) > 0) {
			return netip.Prefix{}, fmt.Errorf("bridge %s: %w", b.cfg.Bridge, errForeign)
		}
		for _, a := range addrs {
			if p, ok := toPrefix(a.IPNet); ok {
				return p.Masked(), nil
			}
		}
	}
	if b.cfg.Subnet.IsValid() {
		return b.cfg.Subnet, nil
	}
	used, err := usedNetworks(h, b.cfg.Bridge, b.cfg.Avoid)
	if err != nil {
		return netip.Prefix{}, err
	}
	return chooseSubnet(used)
}

var errForeign = errors.New("there is an interface of this name that is not crunch-run's: set network-bridge to another name")

// ensure makes what is missing of the bridge. The caller holds the lock.
func (b *Bridge) ensure() (_ *bridgeInfo, notes []string, err error) {
	h, err := handle()
	if err != nil {
		return nil, nil, err
	}
	defer h.Close()
	up, err := findUplink(h, b.cfg.Bridge)
	if err != nil {
		return nil, nil, err
	}
	link, err := b.link(h, up.mtu)
	if err != nil {
		return nil, nil, err
	}
	p := &bridgeInfo{index: link.Attrs().Index, mtu: up.mtu}
	if p.subnet, err = b.subnet(h, link); err != nil {
		return nil, nil, err
	}
	if b.cfg.Subnet.IsValid() && p.subnet.Masked() != b.cfg.Subnet {
		notes = append(notes, fmt.Sprintf("bridge %s has subnet %s and not %s, which is set, because containers still use it", b.cfg.Bridge, p.subnet.Masked(), b.cfg.Subnet))
	}
	if up.ipv6 {
		if p.ula, err = b.ula(h, link, p.subnet.Addr()); err != nil {
			return nil, nil, err
		}
	}
	// A container may send router advertisements to its neighbours, of which the
	// host is one, and so make itself the host's way to the world (CVE-2020-13401).
	for _, s := range []string{"accept_ra", "accept_redirects"} {
		name := "ipv6/conf/" + b.cfg.Bridge + "/" + s
		if err := setSysctl(name, "0"); err != nil && !isNotExist(err) {
			return nil, nil, fmt.Errorf("switch off net/%s, so that no container can redirect the host's packets: %w", name, err)
		}
	}
	if link.Attrs().Flags&unix.IFF_UP == 0 {
		if err := h.LinkSetUp(link); err != nil {
			return nil, nil, fmt.Errorf("bring interface up: %w", err)
		}
	}
	notes = append(notes, enableForwarding(h, up)...)
	if err := b.ensureRules(p); err != nil {
		return nil, nil, err
	}
	for _, o := range obstacles(forwardPath, b.cfg.Bridge, p.ula.IsValid()) {
		notes = append(notes, o.String())
	}
	return p, notes, nil
}

// link finds or makes the interface.
func (b *Bridge) link(h *netlink.Handle, mtu int) (netlink.Link, error) {
	link, err := h.LinkByName(b.cfg.Bridge)
	switch {
	case isNotFound(err):
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = b.cfg.Bridge, mtu
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return nil, explainLink("make a bridge", err)
		}
		if link, err = h.LinkByName(b.cfg.Bridge); err != nil {
			return nil, fmt.Errorf("find interface: %w", err)
		}
		if err := h.LinkSetAlias(link, owner); err != nil {
			return nil, errors.Join(fmt.Errorf("name interface: %w", err), h.LinkDel(link))
		}
		link.Attrs().Alias = owner
		return link, nil
	case err != nil:
		return nil, fmt.Errorf("find interface: %w", err)
	}
	if !ours(link) {
		// Made by us, and killed before it could be named; or somebody else's.
		if addrs, err := listAddrs(h, link, netlink.FAMILY_V4); link.Type() != "bridge" || link.Attrs().Alias != "" || err != nil || len(addrs) > 0 {
			return nil, errForeign
		}
		if err := h.LinkSetAlias(link, owner); err != nil {
			return nil, fmt.Errorf("name interface: %w", err)
		}
	}
	if link.Attrs().MTU != mtu {
		if err := h.LinkSetMTU(link, mtu); err != nil {
			return nil, fmt.Errorf("set the MTU to %d: %w", mtu, err)
		}
	}
	return link, nil
}

// ours tells whether an interface is a bridge that we have made.
func ours(link netlink.Link) bool {
	return link.Type() == "bridge" && strings.HasPrefix(link.Attrs().Alias, owner)
}

// subnet returns the bridge's IPv4 address with the subnet, and gives it one if
// it has none.
func (b *Bridge) subnet(h *netlink.Handle, link netlink.Link) (netip.Prefix, error) {
	addrs, err := listAddrs(h, link, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, a := range addrs {
		if p, ok := toPrefix(a.IPNet); ok {
			return p, nil
		}
	}
	used, err := usedNetworks(h, b.cfg.Bridge, b.cfg.Avoid)
	if err != nil {
		return netip.Prefix{}, err
	}
	subnet := b.cfg.Subnet
	if !subnet.IsValid() {
		if subnet, err = chooseSubnet(used); err != nil {
			return netip.Prefix{}, err
		}
	}
	gateway := netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
	// A fixed hardware address: otherwise it is that of one of the containers,
	// and changes with them.
	if err := h.LinkSetHardwareAddr(link, hardwareAddr(gateway.Addr())); err != nil {
		return netip.Prefix{}, fmt.Errorf("set hardware address: %w", err)
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: toIPNet(gateway)}); err != nil {
		return netip.Prefix{}, fmt.Errorf("give address %s: %w", gateway, err)
	}
	return gateway, nil
}

// ula returns the bridge's IPv6 address with its subnet, and gives it one if it
// has none.
func (b *Bridge) ula(h *netlink.Handle, link netlink.Link, gateway netip.Addr) (netip.Prefix, error) {
	subnet := ulaPrefix(b.cfg.Bridge)
	want := netip.PrefixFrom(with4(subnet, gateway), subnet.Bits())
	if v, err := sysctl("ipv6/conf/" + b.cfg.Bridge + "/disable_ipv6"); err != nil || v != "0" {
		if err := setSysctl("ipv6/conf/"+b.cfg.Bridge+"/disable_ipv6", "0"); err != nil {
			return netip.Prefix{}, nil // the site has decided against it
		}
	}
	err := h.AddrAdd(link, &netlink.Addr{IPNet: toIPNet(want), Flags: unix.IFA_F_NODAD})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return netip.Prefix{}, fmt.Errorf("give address %s: %w", want, err)
	}
	return want, nil
}
