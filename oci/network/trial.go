package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Try makes the bridge's rules, a bridge and a pair of interfaces in a network
// namespace of its own, which ends with it: whatever the kernel lacks shows, and
// the host does not change.
func Try() error {
	done := make(chan error, 1)
	go offMainThread(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		done <- tryKinds()
	})
	return <-done
}

func tryKinds() error {
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = DefaultBridge
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return explainLink("make a bridge", err)
	}
	attrs.Name = "crtrial"
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "crtrial1"}); err != nil {
		return explainLink("make a pair of interfaces", err)
	}
	conn, err := nftables.New()
	if err != nil {
		return explainRules(err)
	}
	table := conn.AddTable(&nftables.Table{Name: tableName(DefaultBridge), Family: nftables.TableFamilyIPv4})
	for _, c := range tableChains(table, DefaultBridge, netip.MustParsePrefix("198.18.0.0/20"), false) {
		conn.AddChain(c.chain)
		for _, exprs := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: c.chain, Exprs: exprs})
		}
	}
	if err := conn.Flush(); err != nil {
		return explainRules(err)
	}
	return nil
}
