package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Root in a container may send any frame (CAP_NET_RAW): such that say they are a
// neighbour's, or that a neighbour's address, or the gateway's, is its own. What
// comes from a port is therefore let pass only if it has the port's own addresses:
// each port has a chain in a table of the family netdev, which sees frames before
// the bridge learns from them. It is, as "nft list" shows it:
//
//	chain PORT {
//		type filter hook ingress device PORT priority filter; policy drop;
//		ether saddr != MAC drop
//		meta protocol ip ip saddr ADDRESS accept
//		meta protocol arp arp saddr ether MAC arp saddr ip { ADDRESS, 0.0.0.0 } accept
//		meta l4proto icmpv6 icmpv6 type { nd-router-advert, nd-redirect } drop
//		meta protocol ip6 icmpv6 type nd-neighbor-advert icmpv6 taddr != { ADDRESS6, fe80::/10 } drop
//		meta protocol ip6 ip6 saddr { ADDRESS6, fe80::/10, :: } accept
//	}

// guard gives each port of the bridge its chain, unless it has one (fresh has none of
// its own), and removes those of ports that are gone. The caller holds the lock.
func (b *Bridge) guard(h *netlink.Handle, p *bridgeInfo, fresh string) error {
	links, err := listLinks(h)
	if err != nil {
		return err
	}
	missing := leasesByPort(links, p.index)
	conn, err := nftables.New()
	if err != nil {
		return explainGuard(err)
	}
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return explainGuard(err)
	}
	table := &nftables.Table{Name: tableName(b.cfg.Bridge), Family: nftables.TableFamilyNetdev}
	stale := false
	for _, c := range all {
		if c.Table.Name != table.Name {
			continue
		}
		if _, there := missing[c.Name]; there && c.Name != fresh {
			delete(missing, c.Name)
			continue
		}
		delChain(conn, c)
		stale = true
	}
	if stale {
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return explainGuard(err)
		}
	}
	conn.AddTable(table)
	for port, addr := range missing {
		c := guardChain(table, port, addr, p.ula)
		conn.AddChain(c.chain)
		for _, exprs := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: c.chain, Exprs: exprs})
		}
	}
	return explainGuard(conn.Flush())
}

// unguard removes the chain of a port, which newer kernels (6.14) do not remove with
// the interface.
func (b *Bridge) unguard(port string) error {
	conn, err := nftables.New()
	if err != nil {
		return explainGuard(err)
	}
	delChain(conn, &nftables.Chain{Name: port, Table: &nftables.Table{Name: tableName(b.cfg.Bridge), Family: nftables.TableFamilyNetdev}})
	err = conn.Flush()
	if errors.Is(err, unix.ENOENT) || unsupported(err) {
		return nil
	}
	return explainGuard(err)
}

func delChain(conn *nftables.Conn, c *nftables.Chain) {
	conn.FlushChain(c)
	conn.DelChain(c)
}

// unsupported tells whether the kernel lacks the family netdev (CONFIG_NF_TABLES_NETDEV).
func unsupported(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

func explainGuard(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("keep containers from using addresses of others: %w", err)
}

// guardChain are the rules for a port. Without ula there is no IPv6.
func guardChain(table *nftables.Table, port string, addr netip.Addr, ula netip.Prefix) chainRules {
	drop := nftables.ChainPolicyDrop
	chain := &nftables.Chain{
		Name: port, Table: table, Type: nftables.ChainTypeFilter, Device: port,
		Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	}
	const (
		link, ip, transport     = expr.PayloadBaseLLHeader, expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
		advertisement, redirect = 134, 137 // types of ICMPv6, RFC 4861
		neighbour               = 136
	)
	mac, linkLocal := hardwareAddr(addr), []byte{0xfe, 0x80}
	is := func(kind uint16) []expr.Any {
		return append([]expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}}, equal([]byte{byte(kind >> 8), byte(kind)})...)
	}
	field := func(base expr.PayloadBase, at uint32, op expr.CmpOp, value []byte) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: base, Offset: at, Len: uint32(len(value))},
			&expr.Cmp{Op: op, Register: 1, Data: value},
		}
	}
	prefixed := func(base expr.PayloadBase, at uint32, op expr.CmpOp) []expr.Any { // fe80::/10
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: base, Offset: at, Len: 2},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xc0}, Xor: []byte{0, 0}},
			&expr.Cmp{Op: op, Register: 1, Data: linkLocal},
		}
	}
	const eq, neq = expr.CmpOpEq, expr.CmpOpNeq
	accept, refuse := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	ethernetIPv4 := []byte{0, 1, 8, 0, 6, 4} // kinds and lengths of addresses, RFC 826
	rules := [][]expr.Any{
		rule(field(link, 6, neq, mac), refuse),
		rule(is(unix.ETH_P_IP), field(ip, 12, eq, addr.AsSlice()), accept),
	}
	for _, sender := range []netip.Addr{addr, netip.IPv4Unspecified()} {
		rules = append(rules, rule(is(unix.ETH_P_ARP), field(ip, 0, eq, ethernetIPv4), field(ip, 8, eq, mac), field(ip, 14, eq, sender.AsSlice()), accept))
	}
	if ula.IsValid() {
		addr6 := with4(ula, addr)
		icmp := append([]expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}}, equal([]byte{unix.IPPROTO_ICMPV6})...)
		for _, kind := range []byte{advertisement, redirect} {
			rules = append(rules, rule(is(unix.ETH_P_IPV6), icmp, field(transport, 0, eq, []byte{kind}), refuse))
		}
		rules = append(rules, rule(is(unix.ETH_P_IPV6), icmp, field(transport, 0, eq, []byte{neighbour}),
			field(transport, 8, neq, addr6.AsSlice()), prefixed(transport, 8, neq), refuse))
		for _, source := range []netip.Addr{addr6, netip.IPv6Unspecified()} {
			rules = append(rules, rule(is(unix.ETH_P_IPV6), field(ip, 8, eq, source.AsSlice()), accept))
		}
		rules = append(rules, rule(is(unix.ETH_P_IPV6), prefixed(ip, 8, eq), accept))
	}
	return chainRules{chain, rules}
}

func equal(value []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}
