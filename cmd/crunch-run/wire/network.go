package wire

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"crunch-oci/internal/undo"
	"crunch-oci/oci"
	"crunch-oci/oci/network"
	"crunch-oci/supervisor"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/rundir"
)

// What a run owns of networks (rundir.Thing.Kind).
const (
	ownsBridge = "bridge" // a place on the bridge, a bridgeID as JSON
	ownsCNI    = "cni"    // one in a CNI network, a cniID as JSON
)

// bridgeID and cniID say what somebody with other settings must know to clean up.
type bridgeID struct {
	State, Bridge, ID string
}

type cniID struct {
	Network, ID, Dir string
	Plugins          []string
}

func removeBridgeThing(ctx context.Context, text string) error {
	var id bridgeID
	if err := json.Unmarshal([]byte(text), &id); err != nil {
		return err
	}
	b, err := network.New(network.Config{StateDir: id.State, Bridge: id.Bridge})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	return b.Cleanup(ctx, id.ID)
}

func removeCNIThing(ctx context.Context, text string) error {
	var id cniID
	if err := json.Unmarshal([]byte(text), &id); err != nil {
		return err
	}
	return network.CNI{PluginDirs: id.Plugins}.Cleanup(ctx, id.Network, id.ID, id.Dir)
}

// own records a thing whose id is JSON.
func own(dir *rundir.Dir, kind string, id any) error {
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return dir.Own(rundir.Thing{Kind: kind, ID: string(text)})
}

// connector connects the container of a run.
type connector struct {
	Job
	dir *rundir.Dir
	// api is closed when apiAddrs has the addresses of the cluster's API.
	api      chan struct{}
	apiAddrs []netip.Addr
}

// newConnector looks for the API's addresses meanwhile, which may take a moment,
// until it has found them or ctx is done.
func newConnector(ctx context.Context, j Job, dir *rundir.Dir) *connector {
	n := &connector{Job: j, dir: dir, api: make(chan struct{})}
	go func() {
		defer close(n.api)
		ctx, cancel := context.WithTimeout(ctx, lookupPatience)
		defer cancel()
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", hostOnly(j.containerAPIHost()))
		if err != nil {
			return // then nothing can be said about it
		}
		for _, a := range found {
			n.apiAddrs = append(n.apiAddrs, a.Unmap())
		}
	}()
	return n
}

// choose gives containers with API access a network, the others none, unless the
// command line says that all get one. Which network it is, the command line
// says, and else the site (spec: lifecycle section 12). What is not available is
// an error: another network might be less isolated than was asked for.
func (n *connector) choose(api bool) (supervisor.Network, error) {
	if !api && n.Flags.EnableNetworking != "always" {
		return supervisor.Network{Kind: oci.NetworkNone}, nil
	}
	kind := n.Flags.NetworkMode
	if kind == "" || kind == "default" {
		kind = n.Site.Network
	}
	switch kind {
	case config.NetworkNone:
		return supervisor.Network{Kind: oci.NetworkNone}, nil
	case config.NetworkHost:
		return supervisor.Network{Kind: oci.NetworkHost}, nil
	case config.NetworkBridge:
		return supervisor.Network{Kind: oci.NetworkPrivate, Connect: func(ctx context.Context, pid int) (supervisor.Connection, error) {
			return n.bridge(ctx, pid, api)
		}}, nil
	}
	// As docker run has it: any other word is the name of a network.
	name := strings.TrimPrefix(kind, config.CNIPrefix)
	if err := n.cni().Lookup(name); err != nil {
		return supervisor.Network{}, fmt.Errorf("the container needs network %q, which this node does not have (bridge, host, none and the CNI networks of %s are known): %w", kind, n.Site.CNIConfigDir, err)
	}
	return supervisor.Network{Kind: oci.NetworkPrivate, Connect: func(ctx context.Context, pid int) (supervisor.Connection, error) {
		return n.join(ctx, name, pid)
	}}, nil
}

func (n *connector) cni() network.CNI {
	return network.CNI{ConfigDir: n.Site.CNIConfigDir, PluginDirs: n.Site.CNIPluginDirs}
}

// connection is a connected container, however that came about.
type connection struct {
	names oci.Names
	notes []string
	undo  undo.Stack
}

// Names implements supervisor.Connection.
func (c *connection) Names() oci.Names { return c.names }

// Notes implements supervisor.Connection.
func (c *connection) Notes() []string { return c.notes }

// Close implements supervisor.Connection.
func (c *connection) Close(ctx context.Context) error { return c.undo.Run(ctx) }

// bridge connects a container to the built-in bridge.
func (n *connector) bridge(ctx context.Context, pid int, api bool) (_ supervisor.Connection, err error) {
	c := &connection{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undo.Run(ctx))
		}
	}()
	ns, err := c.openNamespace(pid)
	if err != nil {
		return nil, err
	}
	<-n.api
	b, id, err := newBridge(n.Site, append(reachable(), n.apiAddrs...))
	if err != nil {
		return nil, err
	}
	id.ID = n.UUID
	if err := own(n.dir, ownsBridge, id); err != nil {
		return nil, err
	}
	link, err := b.Connect(ctx, n.UUID, ns)
	if err != nil {
		return nil, err
	}
	c.undo.Add("leave the bridge", link.Close)
	names, err := network.HostNames(ns, link.IPv6)
	if err != nil {
		return nil, err
	}
	c.undo.Add("stop passing on questions for names", func(context.Context) error { return names.Close() })
	c.names = oci.Names{Addresses: link.Addresses, Resolv: names.Resolv}
	c.notes = append(append(c.notes, link.Notes...), names.Notes...)
	if api {
		lines, note := n.apiHost()
		c.names.Hosts = lines
		if note != "" {
			c.notes = append(c.notes, note)
		}
	}
	return c, nil
}

// join connects a container to a CNI network.
func (n *connector) join(ctx context.Context, name string, pid int) (_ supervisor.Connection, err error) {
	c := &connection{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undo.Run(ctx))
		}
	}()
	ns, err := c.openNamespace(pid)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(n.dir.Path(), "cni")
	if err := own(n.dir, ownsCNI, cniID{Network: name, ID: n.UUID, Dir: dir, Plugins: n.Site.CNIPluginDirs}); err != nil {
		return nil, err
	}
	link, err := n.cni().Connect(ctx, name, n.UUID, dir, ns)
	if err != nil {
		return nil, err
	}
	c.undo.Add("leave the CNI network", link.Close)
	names, err := link.Names(ns)
	if err != nil {
		return nil, err
	}
	c.undo.Add("stop passing on questions for names", func(context.Context) error { return names.Close() })
	c.names = oci.Names{Addresses: link.Addresses, Resolv: names.Resolv}
	c.notes = names.Notes
	return c, nil
}

// openNamespace holds the container's network namespace until the connection is
// closed.
func (c *connection) openNamespace(pid int) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("find the container's network namespace: %w", err)
	}
	c.undo.Add("close network namespace", func(context.Context) error { return ns.Close() })
	return ns, nil
}

// newBridge is the node's bridge.
func newBridge(site config.Site, avoid []netip.Addr) (*network.Bridge, bridgeID, error) {
	state := filepath.Join(site.RuntimeDir, "network-"+site.Bridge)
	b, err := network.New(network.Config{StateDir: state, Bridge: site.Bridge, Subnet: site.Subnet, NoPeers: !site.Peers, Avoid: avoid})
	return b, bridgeID{State: state, Bridge: site.Bridge}, err
}

// lookupPatience bounds the search for addresses that a subnet must not contain.
const lookupPatience = 2 * time.Second

// reachable are name servers: containers must be able to reach them, wherever
// the host's routes lead.
func reachable() []netip.Addr {
	r, err := network.HostResolver(true)
	if err != nil {
		return nil
	}
	return r.Servers
}

// hostOnly is a host without its port.
func hostOnly(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

// apiHost finds what the container must be told about the cluster's address: the
// lines of the host's /etc/hosts in which its name stands, and a note if the
// container cannot reach it.
func (n *connector) apiHost() (hosts []string, note string) {
	name := hostOnly(n.containerAPIHost())
	loopback := func(a netip.Addr) bool { return a.IsLoopback() }
	if slices.ContainsFunc(n.apiAddrs, loopback) {
		return nil, fmt.Sprintf("ARVADOS_API_HOST (%s) is on this host's loopback interface, which the container cannot reach: use network: host, or another address", name)
	}
	f, err := os.Open("/etc/hosts")
	if err != nil {
		return nil, ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) > 1 && slices.ContainsFunc(words[1:], func(w string) bool { return strings.EqualFold(w, name) }) {
			hosts = append(hosts, strings.Join(words, "\t"))
		}
	}
	return hosts, ""
}

// Held is the bridge, kept for a server that containers shall reach.
type Held struct {
	// Host is the host's address on the bridge.
	Host string
	// Notes are for the operator, a line each.
	Notes []string

	undo undo.Stack
}

// HoldBridge makes the node's bridge and keeps it until Close. If the program is
// killed, the next start on this node removes what it leaves.
func HoldBridge(ctx context.Context, site config.Site) (_ *Held, err error) {
	h := &Held{}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.undo.Run(ctx))
		}
	}()
	dir, err := rundir.Create(ctx, site.RuntimeDir, fmt.Sprintf("bridge.%d", os.Getpid()), removers)
	if err != nil {
		return nil, err
	}
	h.undo.Add("remove runtime directory", func(context.Context) error { return dir.Remove(removers) })
	b, id, err := newBridge(site, reachable())
	if err != nil {
		return nil, err
	}
	if err := own(dir, ownsBridge, id); err != nil {
		return nil, err
	}
	use, err := b.Open(ctx)
	if err != nil {
		return nil, err
	}
	h.undo.Add("leave the bridge", use.Close)
	h.Host, h.Notes = use.Gateways[0].String(), use.Notes
	for _, o := range network.ObstaclesHere(site.Bridge) {
		h.Notes = append(h.Notes, o.String())
	}
	return h, nil
}

// Close ends the hold.
func (h *Held) Close(ctx context.Context) error { return h.undo.Run(ctx) }
