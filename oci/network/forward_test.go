package network

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestObstacles(t *testing.T) {
	newWorld(t, false)
	chain := "chain %s { type filter hook forward priority filter; policy %s;\n %s\n }\n"
	for name, c := range map[string]struct {
		rules string
		want  string
	}{
		"open":                     {"table inet f { " + fmt.Sprintf(chain, "forward", "accept", "tcp dport 22 drop") + " }", ""},
		"closed":                   {"table inet f { " + fmt.Sprintf(chain, "passing", "drop", "ct state established accept") + " }", `chain inet f passing drops by default: containers may not reach the network; run: nft insert rule inet f passing iifname "crunch0" accept; `},
		"closed by its end":        {"table ip f { " + fmt.Sprintf(chain, "passing", "accept", "tcp dport 22 accept; counter reject") + " }", "chain ip f passing refuses what no earlier rule of it accepts"},
		"firewalld":                {"table inet firewalld { " + fmt.Sprintf(chain, "filter_FORWARD", "accept", "ct state established accept; reject with icmpx admin-prohibited") + " }", "run: firewall-cmd --permanent --zone=trusted --add-interface=crunch0"},
		"knows us":                 {"table inet f { " + fmt.Sprintf(chain, "passing", "drop", `iifname "crunch0" accept`) + " }", ""},
		"knows our like":           {"table inet f { " + fmt.Sprintf(chain, "passing", "drop", `iifname "crun*" accept`) + " }", ""},
		"knows us, in a jump":      {`table inet f { chain more { iifname "crunch0" accept; }; ` + fmt.Sprintf(chain, "passing", "drop", "jump more") + " }", ""},
		"knows another":            {"table inet f { " + fmt.Sprintf(chain, "passing", "drop", `iifname "crunch01" accept`) + " }", "drops by default"},
		"only hears of us":         {"table inet f { " + fmt.Sprintf(chain, "passing", "drop", `oifname "crunch0" accept`) + " }", "drops by default"},
		"drops and accepts all":    {"table inet f { " + fmt.Sprintf(chain, "passing", "drop", "counter accept") + " }", ""},
		"IPv6 alone is no problem": {"table ip6 f { " + fmt.Sprintf(chain, "passing", "drop", "") + " }", ""},
	} {
		t.Run(name, func(t *testing.T) {
			nft(t, c.rules)
			defer nft(t, "flush ruleset")
			b := newBridge(t)
			u, err := b.Open(t.Context())
			must(t, err)
			defer func() { must(t, u.Close(context.Background())) }()
			notes := strings.Join(u.Notes, "\n")
			if c.want == "" && strings.Contains(notes, "firewall") || !strings.Contains(notes, c.want) {
				t.Errorf("notes %q, want %q", notes, c.want)
			}
		})
	}
}

// The advice, carried out, helps, and is then not given again.
func TestAdviceHelps(t *testing.T) {
	w := newWorld(t, false)
	b := newBridge(t)
	for name, c := range map[string]struct{ closed, open string }{
		"nftables":        {"nft add table inet f; nft 'add chain inet f passing { type filter hook forward priority filter; policy drop; }'", "nft delete table inet f"},
		"iptables-nft":    {"iptables-nft -P FORWARD DROP", "nft delete table ip filter"},
		"iptables-legacy": {"iptables-legacy -P FORWARD DROP", "iptables-legacy -F FORWARD; iptables-legacy -P FORWARD ACCEPT"},
	} {
		t.Run(name, func(t *testing.T) {
			shell(t, c.closed)
			defer shell(t, c.open)
			ns := newNamespace(t)
			conn, err := b.Connect(t.Context(), uuid, ns)
			must(t, err)
			defer func() { must(t, conn.Close(context.Background())) }()
			found := obstacles(forwardPath, DefaultBridge, false)
			if len(found) != 1 {
				t.Fatalf("obstacles %v", found)
			}
			shell(t, found[0].Advice)
			if got, err := ask(ns, farServer, w.tcp); err != nil || got != hostAddr.String() {
				t.Errorf("after %s: %q %v", found[0].Advice, got, err)
			}
			if again := obstacles(forwardPath, DefaultBridge, false); len(again) != 0 {
				t.Errorf("said again: %v", again)
			}
		})
	}
}

// A host that takes no packets is no server for containers.
func TestClosedInput(t *testing.T) {
	newWorld(t, false)
	for name, c := range map[string]struct{ closed, open string }{
		"nftables":        {"nft add table inet f; nft 'add chain inet f taking { type filter hook input priority filter; policy drop; }'", "nft delete table inet f"},
		"iptables-nft":    {"iptables-nft -P INPUT DROP", "nft delete table ip filter"},
		"iptables-legacy": {"iptables-legacy -P INPUT DROP", "iptables-legacy -F INPUT; iptables-legacy -P INPUT ACCEPT"},
	} {
		t.Run(name, func(t *testing.T) {
			shell(t, c.closed)
			defer shell(t, c.open)
			found := ObstaclesHere(DefaultBridge)
			if len(found) != 1 || len(Obstacles(DefaultBridge)) != 0 {
				t.Fatalf("obstacles %v %v", found, Obstacles(DefaultBridge))
			}
			shell(t, found[0].Advice)
			if again := ObstaclesHere(DefaultBridge); len(again) != 0 {
				t.Errorf("said again after %s: %v", found[0].Advice, again)
			}
		})
	}
}

func shell(t testing.TB, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func TestTryLeavesNothing(t *testing.T) {
	newWorld(t, false)
	must(t, Try())
}

// FuzzLegacy reads what a kernel might say about its older rules.
func FuzzLegacy(f *testing.F) {
	f.Add(make([]byte, ipInfoSize), make([]byte, 400))
	f.Fuzz(func(t *testing.T, info, entries []byte) {
		judgeLegacy(info, entries, forwardPath.legacy, DefaultBridge)
	})
}

// A host that gets its default route from router advertisements ignores them as
// soon as it forwards packets, unless it is told not to.
func TestForwardingKeepsAdvertisedRoute(t *testing.T) {
	newWorld(t, false)
	link, err := netlink.LinkByName("uplink")
	must(t, err)
	must(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(hostAddr6, 64)), Flags: unix.IFA_F_NODAD}))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: toIPNet(netip.MustParsePrefix("::/0")), Gw: farRouter6.AsSlice(), Protocol: unix.RTPROT_RA}))
	must(t, setSysctl("ipv6/conf/uplink/accept_ra", "1"))
	if off := Forwarding(); len(off) != 2 {
		t.Errorf("off are %q", off)
	}
	b := newBridge(t)
	u, err := b.Open(t.Context())
	must(t, err)
	defer func() { must(t, u.Close(context.Background())) }()
	if v, err := sysctl("ipv6/conf/uplink/accept_ra"); err != nil || v != "2" {
		t.Errorf("accept_ra %q %v", v, err)
	}
	if notes := strings.Join(u.Notes, "\n"); !strings.Contains(notes, "net.ipv6.conf.uplink.accept_ra was 1: set to 2") {
		t.Errorf("notes %q", notes)
	}
	if off := Forwarding(); len(off) != 0 {
		t.Errorf("off are %q", off)
	}
}
