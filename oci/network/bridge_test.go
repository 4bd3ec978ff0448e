package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// patience bounds whatever must happen and is not measured.
const patience = time.Minute

const uuid = "zzzzz-dz642-abcdefghijklmno"

func TestContainerReachesTheWorld(t *testing.T) {
	for name, ipv6 := range map[string]bool{"IPv4": false, "IPv6 too": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, ipv6)
			b := newBridge(t)
			ns := newNamespace(t)
			c, err := b.Connect(t.Context(), uuid, ns)
			must(t, err)
			defer func() { must(t, c.Close(context.Background())) }()
			if got, err := ask(ns, farServer, w.tcp); err != nil || got != hostAddr.String() {
				t.Errorf("the far server saw %q (%v), want the host's address %s", got, err, hostAddr)
			}
			if ipv6 {
				if got, err := ask(ns, farServer6, w.tcp); err != nil || got != hostAddr6.String() {
					t.Errorf("the far server saw %q (%v), want the host's address %s", got, err, hostAddr6)
				}
			}
			if c.IPv6 != ipv6 || len(c.Addresses) != len(c.Gateways) {
				t.Errorf("%+v", c)
			}
			if notes := strings.Join(c.Notes, "\n"); !strings.Contains(notes, "net.ipv4.ip_forward was off: switched on") || strings.Contains(notes, "ipv6.conf.all.forwarding was off: switched on") != ipv6 {
				t.Errorf("notes %q", notes)
			}
			h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
			must(t, err)
			defer h.Close()
			link, err := h.LinkByName("eth0")
			must(t, err)
			if link.Attrs().MTU != uplinkMTU {
				t.Errorf("MTU %d, want the uplink's %d", link.Attrs().MTU, uplinkMTU)
			}
			addrs, err := h.AddrList(link, netlink.FAMILY_V6)
			must(t, err)
			if !ipv6 && len(addrs) > 0 {
				t.Errorf("a host without IPv6 gives %v", addrs)
			}
			// The same answer from the bridge's own side.
			l, err := net.Listen("tcp", netip.AddrPortFrom(c.Gateways[0], 0).String())
			must(t, err)
			defer l.Close()
			go func() {
				if conn, err := l.Accept(); err == nil {
					fmt.Fprint(conn, conn.RemoteAddr())
					_ = conn.Close()
				}
			}()
			if got, err := ask(ns, c.Gateways[0], l.Addr().(*net.TCPAddr).Port); err != nil || !strings.HasPrefix(got, c.Addresses[0].String()+":") {
				t.Errorf("the host saw %q (%v), want %s", got, err, c.Addresses[0])
			}
		})
	}
}

// Nobody outside gets in who was not asked; an answer does, and what the site
// forwards, also to a container that asks for itself.
func TestContainerFromOutside(t *testing.T) {
	w := newWorld(t, false)
	b := newBridge(t)
	ns := newNamespace(t)
	c, err := b.Connect(t.Context(), uuid, ns)
	must(t, err)
	defer func() { must(t, c.Close(context.Background())) }()
	var port int
	must(t, inside(ns, func() error {
		l, err := net.Listen("tcp4", ":0")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		port = l.Addr().(*net.TCPAddr).Port
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, "here")
				_ = conn.Close()
			}
		}()
		return nil
	}))
	// The far side knows the way to the subnet.
	h, err := netlink.NewHandleAt(netns.NsHandle(w.far.Fd()))
	must(t, err)
	defer h.Close()
	must(t, h.RouteAdd(&netlink.Route{Dst: toIPNet(c.info.subnet.Masked()), Gw: hostAddr.AsSlice()}))
	err = inside(w.far, func() error {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(c.Addresses[0], uint16(port)).String(), 500*time.Millisecond)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	if err == nil {
		t.Error("a stranger reached the container")
	}
	nft(t, fmt.Sprintf("table ip site { chain in { type nat hook prerouting priority dstnat; ip daddr %s tcp dport 80 dnat to %s:%d; }; }", hostAddr, c.Addresses[0], port))
	defer nft(t, "delete table ip site")
	if got, err := ask(w.far, hostAddr, 80); err != nil || got != "here" {
		t.Errorf("through the site's forwarding: %q %v", got, err)
	}
	if got, err := ask(ns, hostAddr, 80); err != nil || got != "here" {
		t.Errorf("through the site's forwarding, back to where it came from: %q %v", got, err)
	}
	link, err := netlink.LinkByName(portName(uuid))
	must(t, err)
	info, err := netlink.LinkGetProtinfo(link)
	must(t, err)
	if !info.Hairpin {
		t.Error("hairpin mode is off")
	}
}

// Fifty at once: every one an address of its own, and nothing left.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t, false)
	b := newBridge(t)
	const n = 50
	type result struct {
		c   *Connection
		ns  *os.File
		err error
	}
	results := make([]result, n)
	for i := range results {
		results[i].ns = newNamespace(t)
	}
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() {
			r := &results[i]
			r.c, r.err = b.Connect(t.Context(), fmt.Sprintf("zzzzz-dz642-%015d", i), r.ns)
		})
	}
	wg.Wait()
	seen := make(map[netip.Addr]int)
	for i, r := range results {
		must(t, r.err)
		if other, ok := seen[r.c.Addresses[0]]; ok {
			t.Errorf("containers %d and %d both have %s", i, other, r.c.Addresses[0])
		}
		seen[r.c.Addresses[0]] = i
		if got, err := ask(r.ns, farServer, w.tcp); err != nil || got != hostAddr.String() {
			t.Errorf("container %d: %q %v", i, got, err)
		}
	}
	for _, r := range results {
		wg.Go(func() {
			if err := r.c.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := os.Stat(b.cfg.StateDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state directory: %v", err)
	}
}

// starts is how many containers TestStartsAndStops starts.
func starts() int {
	if os.Getenv("CRUNCH_RUN_TEST_LONG") != "" {
		return 200
	}
	return 24
}

// Whatever ends a connection, the next cleaning leaves the host as it was. Three
// ways in turn: an orderly end; the death of the process, which leaves the
// container's namespace a little longer; and its death after that of the
// container.
func TestStartsAndStops(t *testing.T) {
	newWorld(t, false)
	before := hostState(t)
	b := newBridge(t)
	for i := range starts() {
		id := fmt.Sprintf("zzzzz-dz642-%015d", i)
		ns := newNamespace(t)
		c, err := b.Connect(t.Context(), id, ns)
		must(t, err)
		switch i % 3 {
		case 0:
			must(t, c.Close(context.Background()))
			must(t, ns.Close())
		case 1:
			must(t, c.state.close()) // what the kernel does when the process dies
			must(t, b.Cleanup(context.Background(), id))
			must(t, ns.Close())
		case 2:
			must(t, c.state.close())
			must(t, ns.Close())
			must(t, b.Cleanup(context.Background(), id))
		}
		if after := hostState(t); after != before {
			t.Fatalf("after %d starts:\n%s\nwant:\n%s", i+1, after, before)
		}
	}
	must(t, b.Cleanup(context.Background(), "zzzzz-dz642-neverstarted000"))
	if _, err := os.Stat(filepath.Dir(b.cfg.StateDir)); err != nil {
		t.Error(err)
	}
}

// The last user removes bridge and rules, and nobody else.
func TestLastUserRemoves(t *testing.T) {
	newWorld(t, false)
	b := newBridge(t)
	u, err := b.Open(t.Context())
	must(t, err)
	ns := newNamespace(t)
	c, err := b.Connect(t.Context(), uuid, ns)
	must(t, err)
	if !slices.Equal(c.Gateways, u.Gateways) {
		t.Errorf("gateways %v and %v", c.Gateways, u.Gateways)
	}
	must(t, c.Close(t.Context()))
	must(t, b.Cleanup(t.Context(), "zzzzz-dz642-somebodyelse000"))
	if _, err := netlink.LinkByName(DefaultBridge); err != nil {
		t.Errorf("the bridge is gone although it is in use: %v", err)
	}
	// Somebody with a state directory of their own does not know of u, but sees
	// the interfaces that are on the bridge.
	other := newBridge(t)
	c, err = b.Connect(t.Context(), uuid, ns)
	must(t, err)
	ns2 := newNamespace(t)
	c2, err := other.Connect(t.Context(), "zzzzz-dz642-somebodyelse000", ns2)
	must(t, err)
	if c.Addresses[0] == c2.Addresses[0] {
		t.Errorf("both have %s", c.Addresses[0])
	}
	must(t, c2.Close(t.Context()))
	if _, err := netlink.LinkByName(DefaultBridge); err != nil {
		t.Errorf("the bridge is gone although there are containers on it: %v", err)
	}
	must(t, c.Close(t.Context()))
	must(t, u.Close(t.Context()))
	if _, err := netlink.LinkByName(DefaultBridge); err == nil {
		t.Error("the last user has left the bridge")
	}
	must(t, os.RemoveAll(other.cfg.StateDir))
}

// A process killed while it makes the bridge leaves a part of it; a host's
// firewall that is loaded again takes the rules away.
func TestBridgeIsCompleted(t *testing.T) {
	w := newWorld(t, true)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = DefaultBridge
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	b := newBridge(t)
	ns := newNamespace(t)
	c, err := b.Connect(t.Context(), uuid, ns)
	must(t, err)
	defer func() { must(t, c.Close(context.Background())) }()
	nft(t, "flush ruleset")
	ns2 := newNamespace(t)
	c2, err := b.Connect(t.Context(), "zzzzz-dz642-somebodyelse000", ns2)
	must(t, err)
	defer func() { must(t, c2.Close(context.Background())) }()
	for _, ns := range []*os.File{ns, ns2} {
		if got, err := ask(ns, farServer, w.tcp); err != nil || got != hostAddr.String() {
			t.Errorf("%q %v", got, err)
		}
	}
	for _, v := range []string{"accept_ra", "accept_redirects"} {
		if got, err := sysctl("ipv6/conf/" + DefaultBridge + "/" + v); err != nil || got != "0" {
			t.Errorf("a container can redirect the host's packets: %s %q %v", v, got, err)
		}
	}
}

// A run of the same container whose last end is still dying gets its interface.
func TestSameContainerAgain(t *testing.T) {
	newWorld(t, false)
	b := newBridge(t)
	ns, ns2 := newNamespace(t), newNamespace(t)
	c, err := b.Connect(t.Context(), uuid, ns)
	must(t, err)
	must(t, c.state.close())
	c2, err := b.Connect(t.Context(), uuid, ns2)
	must(t, err)
	if c.Addresses[0] != c2.Addresses[0] {
		t.Errorf("%s and then %s", c.Addresses[0], c2.Addresses[0])
	}
	must(t, c2.Close(t.Context()))
}

func TestForeignInterface(t *testing.T) {
	newWorld(t, false)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = DefaultBridge
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	link, err := netlink.LinkByName(DefaultBridge)
	must(t, err)
	defer func() { must(t, netlink.LinkDel(link)) }()
	must(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: toIPNet(netip.MustParsePrefix("10.1.0.1/16"))}))
	_, err = newBridge(t).Connect(t.Context(), uuid, newNamespace(t))
	if err == nil || !strings.Contains(err.Error(), "set network-bridge") {
		t.Errorf("somebody else's bridge: %v", err)
	}
	if _, err := netlink.LinkByName(DefaultBridge); err != nil {
		t.Errorf("somebody else's bridge was removed: %v", err)
	}
	if _, err := newBridge(t).Preview(); !errors.Is(err, errForeign) {
		t.Errorf("foreseen: %v", err)
	}
}

func TestSubnetIsFull(t *testing.T) {
	newWorld(t, false)
	b, err := New(Config{StateDir: filepath.Join(t.TempDir(), "s"), Subnet: netip.MustParsePrefix("10.9.8.0/29")})
	must(t, err)
	var all []*Connection
	for i := range 5 {
		c, err := b.Connect(t.Context(), fmt.Sprintf("zzzzz-dz642-%015d", i), newNamespace(t))
		must(t, err)
		all = append(all, c)
	}
	if _, err := b.Connect(t.Context(), uuid, newNamespace(t)); !errors.Is(err, ErrNoAddress) {
		t.Errorf("the sixth container in a subnet for five: %v", err)
	}
	must(t, all[2].Close(t.Context()))
	c, err := b.Connect(t.Context(), uuid, newNamespace(t))
	must(t, err)
	if c.Addresses[0] != all[2].Addresses[0] {
		t.Errorf("got %s, free was only %s", c.Addresses[0], all[2].Addresses[0])
	}
	all[2] = c
	for _, c := range all {
		must(t, c.Close(t.Context()))
	}
}

func TestSubnetAvoidsRoutes(t *testing.T) {
	newWorld(t, false)
	link, err := netlink.LinkByName("uplink")
	must(t, err)
	first, err := chooseSubnet(nil)
	must(t, err)
	// A VPN's, in a table of its own.
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: toIPNet(first), Gw: farRouter.AsSlice(), Table: 777}))
	// A pair of halves of everything does not count.
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: toIPNet(netip.MustParsePrefix("128.0.0.0/1")), Gw: farRouter.AsSlice()}))
	second := plus(first.Addr(), 1<<12)
	b, err := New(Config{StateDir: filepath.Join(t.TempDir(), "s"), Avoid: []netip.Addr{plus(second, 77)}})
	must(t, err)
	preview, err := b.Preview()
	must(t, err)
	u, err := b.Open(t.Context())
	must(t, err)
	if again, err := b.Preview(); err != nil || preview != u.info.subnet.Masked() || again != preview {
		t.Errorf("foreseen was %s, then %s %v", preview, again, err)
	}
	if want := plus(first.Addr(), 2<<12); u.info.subnet.Masked().Addr() != want {
		t.Errorf("chose %s, want the first that is free, %s", u.info.subnet, want)
	}
	must(t, u.Close(t.Context()))
}

func TestSettings(t *testing.T) {
	for name, c := range map[string]Config{
		"relative state": {StateDir: "x"},
		"slash":          {StateDir: "/x", Bridge: "a/b"},
		"long":           {StateDir: "/x", Bridge: "sixteen-letters1"},
		"dots":           {StateDir: "/x", Bridge: ".."},
		"host bits":      {StateDir: "/x", Subnet: netip.MustParsePrefix("10.0.0.1/24")},
		"tiny":           {StateDir: "/x", Subnet: netip.MustParsePrefix("10.0.0.0/30")},
		"loopback":       {StateDir: "/x", Subnet: netip.MustParsePrefix("127.0.0.0/8")},
		"IPv6":           {StateDir: "/x", Subnet: netip.MustParsePrefix("fd00::/64")},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Containers reach each other, as with Docker, unless the site says otherwise:
// then neither directly nor through the host.
func TestPeers(t *testing.T) {
	newWorld(t, false)
	// Where packets that only cross the bridge do not meet the rules.
	if err := setSysctl("bridge/bridge-nf-call-iptables", "0"); err != nil && !isNotExist(err) {
		t.Fatal(err)
	}
	defer func() { _ = setSysctl("bridge/bridge-nf-call-iptables", "1") }()
	for name, noPeers := range map[string]bool{"reach each other": false, "kept apart": true} {
		t.Run(name, func(t *testing.T) {
			b, err := New(Config{StateDir: filepath.Join(t.TempDir(), "s"), NoPeers: noPeers})
			must(t, err)
			var all []*Connection
			var spaces []*os.File
			for i := range 2 {
				ns := newNamespace(t)
				c, err := b.Connect(t.Context(), fmt.Sprintf("zzzzz-dz642-%015d", i), ns)
				must(t, err)
				defer func() { must(t, c.Close(context.Background())) }()
				all, spaces = append(all, c), append(spaces, ns)
			}
			var port int
			must(t, inside(spaces[1], func() error {
				l, err := net.Listen("tcp4", ":0")
				if err == nil {
					t.Cleanup(func() { _ = l.Close() })
					port = l.Addr().(*net.TCPAddr).Port
				}
				return err
			}))
			dial := func() error {
				return inside(spaces[0], func() error {
					limit := patience
					if noPeers {
						limit = 300 * time.Millisecond
					}
					c, err := net.DialTimeout("tcp", netip.AddrPortFrom(all[1].Addresses[0], uint16(port)).String(), limit)
					if err == nil {
						_ = c.Close()
					}
					return err
				})
			}
			if err := dial(); (err != nil) != noPeers {
				t.Errorf("directly: %v", err)
			}
			// The way back is direct, so that the rule alone does not show below.
			if accepted := strings.Contains(hostState(t), `iifname "crunch0" oifname "crunch0" accept`); accepted == noPeers {
				t.Errorf("rules:\n%s", hostState(t))
			}
			// By the host, which knows the way.
			h, err := netlink.NewHandleAt(netns.NsHandle(spaces[0].Fd()))
			must(t, err)
			defer h.Close()
			must(t, h.RouteAdd(&netlink.Route{Dst: toIPNet(netip.PrefixFrom(all[1].Addresses[0], 32)), Gw: all[0].Gateways[0].AsSlice()}))
			if err := dial(); (err != nil) != noPeers {
				t.Errorf("by the host: %v", err)
			}
		})
	}
}

// What is done to a container's namespace must not be done to the host's.
func TestOwnNamespace(t *testing.T) {
	newWorld(t, false)
	own, err := os.Open("/proc/self/ns/net")
	must(t, err)
	defer own.Close()
	if _, err := newBridge(t).Connect(t.Context(), uuid, own); err == nil || !strings.Contains(err.Error(), "no network namespace of its own") {
		t.Errorf("the host was connected: %v", err)
	}
	c, _ := cniNetwork(t)
	if _, err := c.Connect(t.Context(), "lab", uuid, filepath.Join(t.TempDir(), "cni"), own); err == nil {
		t.Error("the host was connected to a CNI network")
	}
}
