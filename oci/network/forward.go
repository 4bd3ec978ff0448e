package network

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// enableForwarding switches on what the host needs to forward packets, and returns
// what it has changed, for the log. It is never switched off again: others may have
// come to rely on it.
func enableForwarding(h *netlink.Handle, up uplink) (notes []string) {
	notes = append(notes, switchOn("ipv4/ip_forward")...)
	if !up.ipv6 {
		return notes
	}
	if v, err := sysctl("ipv6/conf/all/forwarding"); err == nil && v == "0" {
		// A host that forwards ignores router advertisements, and would lose its
		// own default route when that expires, unless told otherwise.
		for _, i := range up.byRA {
			link, err := h.LinkByIndex(i)
			if err != nil {
				continue
			}
			name := "ipv6/conf/" + link.Attrs().Name + "/accept_ra"
			if v, err := sysctl(name); err == nil && v == "1" {
				if err := setSysctl(name, "2"); err != nil {
					return append(notes, fmt.Sprintf("IPv6 is not forwarded: net/%s cannot be set to 2, without which this host would lose its default route: %v", name, err))
				}
				notes = append(notes, fmt.Sprintf("net.%s was 1: set to 2, because this host now forwards IPv6 packets and gets its default route from router advertisements", dotted(name)))
			}
		}
	}
	return append(notes, switchOn("ipv6/conf/all/forwarding")...)
}

// switchOn sets a parameter to 1.
func switchOn(name string) []string {
	v, err := sysctl(name)
	if err == nil && v != "0" {
		return nil
	}
	if err == nil {
		err = setSysctl(name, "1")
	}
	if err != nil {
		return []string{fmt.Sprintf("net.%s is off and cannot be switched on (%v): containers reach this host only; run: sysctl -w net.%s=1", dotted(name), err, dotted(name))}
	}
	return []string{fmt.Sprintf("net.%s was off: switched on", dotted(name))}
}

func dotted(name string) string { return strings.ReplaceAll(name, "/", ".") }

// Forwarding tells which of the kernel's parameters for forwarding are off, in
// sysctl's notation.
func Forwarding() (off []string) {
	names := []string{"ipv4/ip_forward"}
	if h, err := handle(); err == nil {
		if up, err := findUplink(h, ""); err == nil && up.ipv6 {
			names = append(names, "ipv6/conf/all/forwarding")
		}
		h.Close()
	}
	for _, name := range names {
		if v, err := sysctl(name); err != nil || v == "0" {
			off = append(off, "net."+dotted(name))
		}
	}
	return off
}

// Obstacle is a chain of somebody else's that may keep the containers' packets
// from being forwarded. In nftables a packet must be accepted by every chain of
// a hook, so ours cannot help.
type Obstacle struct {
	// Chain names the chain: "ip filter FORWARD".
	Chain string
	// Why is what it does: "drops by default".
	Why string
	// Effect is what containers may be unable to do.
	Effect string
	// Advice is the command that lets the packets through.
	Advice string
}

// String is a line for the log.
func (o Obstacle) String() string {
	return fmt.Sprintf("the firewall chain %s %s: %s; run: %s", o.Chain, o.Why, o.Effect, o.Advice)
}

// packetPath is a hook of netfilter that packets of containers pass.
type packetPath struct {
	hook     *nftables.ChainHook
	legacy   int    // the hook's number in the tables of the older iptables
	iptables string // the chain's name there
	effect   string
}

var (
	forwardPath = packetPath{nftables.ChainHookForward, 2, "FORWARD", "containers may not reach the network"}
	inputPath   = packetPath{nftables.ChainHookInput, 1, "INPUT", "containers may not reach this host"}
)

// Obstacles looks for closed FORWARD chains that know nothing of the bridge.
func Obstacles(bridge string) []Obstacle { return obstacles(forwardPath, bridge, true) }

// ObstaclesHere looks for closed INPUT chains, which keep containers from servers
// on this host.
func ObstaclesHere(bridge string) []Obstacle { return obstacles(inputPath, bridge, false) }

func obstacles(p packetPath, bridge string, ipv6 bool) (found []Obstacle) {
	conn, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := conn.ListChains()
	if err == nil {
		for _, c := range chains {
			if o := obstacle(p, conn, c, bridge, ipv6); o != nil {
				found = append(found, *o)
			}
		}
	}
	if o := legacyObstacle(p, bridge); o != nil {
		found = append(found, *o)
	}
	return found
}

// obstacle returns what keeps packets from passing chain c, or nil.
func obstacle(p packetPath, conn *nftables.Conn, c *nftables.Chain, bridge string, ipv6 bool) *Obstacle {
	if c.Type != nftables.ChainTypeFilter || c.Hooknum == nil || *c.Hooknum != *p.hook || c.Table.Name == tableName(bridge) {
		return nil
	}
	family, ok := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}[c.Table.Family]
	if !ok || family == "ip6" && !ipv6 {
		return nil
	}
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return nil
	}
	o := &Obstacle{Chain: family + " " + c.Table.Name + " " + c.Name, Effect: p.effect}
	switch {
	case len(rules) > 0 && refusesAll(rules[len(rules)-1]):
		o.Why = "refuses what no earlier rule of it accepts"
	case c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop:
		o.Why = "drops by default"
	default:
		return nil
	}
	if namesInput(conn, c.Table, bridge) || slices.ContainsFunc(rules, acceptsAll) {
		return nil
	}
	target := fmt.Sprintf("nft insert rule %s %s %s", family, c.Table.Name, c.Name)
	o.Advice = fmt.Sprintf("%s iifname %q accept", target, bridge)
	if p == forwardPath {
		o.Advice += fmt.Sprintf("; %s oifname %q ct state established,related accept", target, bridge)
	}
	if c.Name == p.iptables && c.Table.Name == "filter" {
		o.Advice = iptablesAdvice(p, map[string]string{"ip": "iptables", "ip6": "ip6tables", "inet": "iptables"}[family], bridge)
	}
	if advice, ok := tableOwners[c.Table.Name]; ok && family == "inet" {
		o.Advice = fmt.Sprintf(advice, bridge)
	}
	return o
}

// tableOwners are programs that throw away whatever others put into their tables, by
// the table's name, with the command that makes them put it there themselves.
var tableOwners = map[string]string{
	"firewalld": "firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload",
}

func iptablesAdvice(p packetPath, program, bridge string) string {
	if p == inputPath {
		return fmt.Sprintf("%s -I INPUT -i %s -j ACCEPT", program, bridge)
	}
	return fmt.Sprintf("%s -I FORWARD -i %s -j ACCEPT; %s -I FORWARD -o %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", program, bridge, program, bridge)
}

// refusesAll tells whether a rule drops or rejects every packet.
func refusesAll(r *nftables.Rule) bool {
	refuses := false
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			refuses = true
		case *expr.Target: // of iptables
			refuses = refuses || e.Name == "REJECT" || e.Name == "DROP"
		case *expr.Verdict:
			refuses = refuses || e.Kind == expr.VerdictDrop
		default:
			return false
		}
	}
	return refuses
}

// acceptsAll tells whether a rule accepts every packet.
func acceptsAll(r *nftables.Rule) bool {
	accepts := false
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Verdict:
			accepts = e.Kind == expr.VerdictAccept
		default:
			return false
		}
	}
	return accepts
}

// namesInput tells whether any rule of a table compares the interface that packets
// come in by with the bridge, or with a beginning of its name.
func namesInput(conn *nftables.Conn, table *nftables.Table, bridge string) bool {
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return false
	}
	for _, c := range chains {
		if c.Table.Name != table.Name {
			continue
		}
		rules, err := conn.GetRules(table, c)
		if err != nil {
			continue
		}
		for _, r := range rules {
			if comparesInput(r, bridge) {
				return true
			}
		}
	}
	return false
}

func comparesInput(r *nftables.Rule, bridge string) bool {
	register := uint32(0)
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			register = 0
			if e.Key == expr.MetaKeyIIFNAME {
				register = e.Register
			}
		case *expr.Cmp:
			if register == 0 || e.Register != register || e.Op != expr.CmpOpEq {
				continue
			}
			name := string(e.Data)
			whole := strings.IndexByte(name, 0)
			if whole >= 0 && name[:whole] == bridge || whole < 0 && name != "" && strings.HasPrefix(bridge, name) {
				return true
			}
		}
	}
	return false
}
