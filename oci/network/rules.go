package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the name of our table, in families ip, ip6 and netdev. Nothing else is
// changed in the host's rules.
func tableName(bridge string) string { return "crunch-run-" + bridge }

// ctStatusDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ctStatusDNAT = 1 << 5

// ensureRules makes the table complete, in one transaction, unless it is: "nft
// flush ruleset", which reloads a host's firewall, takes it away.
func (b *Bridge) ensureRules(p *bridgeInfo) error {
	conn, err := nftables.New()
	if err != nil {
		return explainRules(err)
	}
	families := []nftables.TableFamily{nftables.TableFamilyIPv4}
	if p.ula.IsValid() {
		families = append(families, nftables.TableFamilyIPv6)
	}
	for _, f := range families {
		subnet := p.subnet
		if f == nftables.TableFamilyIPv6 {
			subnet = p.ula
		}
		table := &nftables.Table{Name: tableName(b.cfg.Bridge), Family: f}
		chains := tableChains(table, b.cfg.Bridge, subnet.Masked(), b.cfg.NoPeers)
		if complete(conn, table, chains) {
			continue
		}
		// Added first, so that there is something to delete.
		conn.AddTable(table)
		conn.DelTable(table)
		conn.AddTable(table)
		for _, c := range chains {
			conn.AddChain(c.chain)
			for _, exprs := range c.rules {
				conn.AddRule(&nftables.Rule{Table: table, Chain: c.chain, Exprs: exprs})
			}
		}
	}
	return explainRules(conn.Flush())
}

// removeRules removes the tables; those that are not there are no error.
func (b *Bridge) removeRules() error {
	conn, err := nftables.New()
	if err != nil {
		return explainRules(err)
	}
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyNetdev} {
		table := &nftables.Table{Name: tableName(b.cfg.Bridge), Family: f}
		if _, err := conn.ListTableOfFamily(table.Name, f); err != nil {
			continue
		}
		conn.DelTable(table)
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return explainRules(err)
	}
	return nil
}

// complete tells whether the table has all its chains, with all rules.
func complete(conn *nftables.Conn, table *nftables.Table, chains []chainRules) bool {
	for _, c := range chains {
		rules, err := conn.GetRules(table, c.chain)
		if err != nil || len(rules) != len(c.rules) {
			return false
		}
	}
	return true
}

func explainRules(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("set up nftables rules: %w (the kernel needs nf_tables, nft_masq, nft_ct and nft_chain_nat)", err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("set up nftables rules: %w (does the kernel have the modules nft_masq, nft_ct and nft_chain_nat?)", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("set up nftables rules: %w (CAP_NET_ADMIN is needed)", err)
	}
	return fmt.Errorf("set up nftables rules: %w", err)
}

// chainRules is a chain with its rules.
type chainRules struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

// tableChains are the rules, as "nft list" shows them:
//
//	chain postrouting {
//		type nat hook postrouting priority srcnat;
//		ip saddr SUBNET oifname != BRIDGE masquerade
//		ip saddr SUBNET oifname BRIDGE ct status dnat masquerade
//	}
//	chain forward {
//		type filter hook forward priority filter; policy accept;
//		oifname BRIDGE ct state established,related accept
//		iifname BRIDGE oifname BRIDGE accept      (unless containers are kept from each other)
//		oifname BRIDGE ct status dnat accept
//		oifname BRIDGE drop
//		iifname BRIDGE accept
//	}
//
// A container is reached from outside only by what it has asked for, or what the
// site forwards to it.
func tableChains(table *nftables.Table, bridge string, subnet netip.Prefix, noPeers bool) []chainRules {
	accept := nftables.ChainPolicyAccept
	nat := &nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
	forward := &nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &accept,
	}
	in, out := matchInterface(expr.MetaKeyIIFNAME, bridge, expr.CmpOpEq), matchInterface(expr.MetaKeyOIFNAME, bridge, expr.CmpOpEq)
	answers := matchBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	forwarded := matchBits(expr.CtKeySTATUS, ctStatusDNAT)
	ok := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	var peers [][]expr.Any
	if !noPeers {
		peers = append(peers, rule(in, out, ok))
	}
	return []chainRules{
		{nat, [][]expr.Any{
			rule(matchSource(subnet), matchInterface(expr.MetaKeyOIFNAME, bridge, expr.CmpOpNeq), []expr.Any{&expr.Masq{}}),
			rule(matchSource(subnet), out, forwarded, []expr.Any{&expr.Masq{}}),
		}},
		{forward, slices.Concat([][]expr.Any{rule(out, answers, ok)}, peers, [][]expr.Any{
			rule(out, forwarded, ok),
			rule(out, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}),
			rule(in, ok),
		})},
	}
}

func rule(parts ...[]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// matchInterface compares the name of the interface a packet comes in or goes
// out by.
func matchInterface(key expr.MetaKey, name string, op expr.CmpOp) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

// matchBits asks whether any of the bits is set in what connection tracking
// knows.
func matchBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// matchSource compares the source address with a subnet.
func matchSource(p netip.Prefix) []expr.Any {
	addr := p.Addr().AsSlice()
	at := uint32(12) // in an IPv4 header
	if p.Addr().Is6() {
		at = 8
	}
	size := uint32(len(addr))
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: toIPNet(p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr},
	}
}
