package nodecheck

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"crunch-oci/oci/network"
	"crunch-oci/supervisor/config"
)

func networks(c *checker) {
	if c.SiteErr != nil {
		return
	}
	switch kind := c.Site.Network; kind {
	case config.NetworkNone:
		c.note("no container gets a network (network: none); those with API access will fail")
		return
	case config.NetworkHost:
		c.note("containers with API access use this node's own network (network: host)")
		return
	case config.NetworkBridge:
		bridge(c)
	default:
		name := strings.TrimPrefix(kind, config.CNIPrefix)
		cni := network.CNI{ConfigDir: c.Site.CNIConfigDir, PluginDirs: c.Site.CNIPluginDirs}
		if err := cni.Lookup(name); err != nil {
			c.fail("describe the network in "+c.Site.CNIConfigDir+", or set network", "%v", err)
			return
		}
		c.ok("CNI network %q is described", name)
	}
	names(c)
}

// bridge tries what the built-in bridge needs.
func bridge(c *checker) {
	if err := network.Try(); err != nil {
		c.fail("load the modules bridge, veth, nf_tables, nft_masq, nft_ct and nft_chain_nat, or set network: host or none", "network bridge: %v", err)
		return
	}
	subnet, err := preview(c.Site)
	if err != nil {
		c.fail("set network-bridge or network-subnet", "network bridge: %v", err)
		return
	}
	c.ok("bridge, interfaces and nftables rules can be made; containers' subnet is %s", subnet)
	for _, p := range network.Forwarding() {
		if err := writable(p); err != nil {
			c.fail("sysctl -w "+p+"=1, and in /etc/sysctl.d", "%s is off and cannot be switched on: %v", p, err)
			continue
		}
		c.warn("sysctl -w "+p+"=1, and in /etc/sysctl.d, if you do not want crunch-run to do it", "%s is off: the first container that needs the bridge will switch it on", p)
	}
	for _, o := range network.Obstacles(c.Site.Bridge) {
		c.warn(o.Advice, "the firewall chain %s %s: %s", o.Chain, o.Why, o.Effect)
	}
}

// preview is the subnet that containers have, or will get.
func preview(site config.Site) (netip.Prefix, error) {
	b, err := network.New(network.Config{StateDir: site.RuntimeDir, Bridge: site.Bridge, Subnet: site.Subnet})
	if err != nil {
		return netip.Prefix{}, err
	}
	return b.Preview()
}

// writable tells whether a kernel parameter can be set, without setting it.
func writable(parameter string) error {
	f, err := os.OpenFile("/proc/sys/"+strings.ReplaceAll(parameter, ".", "/"), os.O_WRONLY, 0)
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			return path.Err
		}
		return err
	}
	return f.Close()
}

// names says how containers will resolve names.
func names(c *checker) {
	r, err := network.HostResolver(true)
	switch {
	case err != nil:
		c.warn("", "name servers: %v", err)
	case len(r.Servers) > 0:
		var list []string
		for _, s := range r.Servers {
			list = append(list, s.String())
		}
		c.ok("name servers %s", strings.Join(list, ", "))
	case len(r.Local) > 0:
		c.note("the name server is on this node's loopback; containers' questions are passed on to it")
	default:
		c.warn("name a server in /etc/resolv.conf", "no name server: containers cannot resolve names")
	}
}
