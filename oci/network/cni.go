package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"crunch-oci/internal/forkthread"
)

// Where CNI configurations and plugins usually are.
const DefaultCNIConfigDir = "/etc/cni/net.d"

// DefaultCNIPluginDirs are those of the CNI project, Debian and Fedora.
var DefaultCNIPluginDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// cniTimeout bounds one ADD or DEL of all plugins of a network together: some
// wait for a DHCP server.
const cniTimeout = time.Minute

// ErrNoCNINetwork says that there is no configuration of a network's name.
var ErrNoCNINetwork = errors.New("no such CNI network")

// CNI is what the node has of the Container Network Interface.
type CNI struct {
	// ConfigDir has the networks' configurations.
	ConfigDir string
	// PluginDirs are searched for the programs that they name.
	PluginDirs []string
}

// CNIConnection is a container in a CNI network.
type CNIConnection struct {
	// Addresses are the container's own, as the plugins say.
	Addresses []netip.Addr
	// Resolver is the network's, if it has one.
	Resolver Resolver

	cni CNI
	att attachment
}

// attachment is what is needed to end a connection.
type attachment struct {
	network, id, dir, ns string
}

// Lookup returns an error that answers errors.Is(err, ErrNoCNINetwork) unless
// there is a network of the name, and one that says what is wrong with its
// configuration.
func (c CNI) Lookup(name string) error {
	_, err := c.load(name)
	return err
}

func (c CNI) load(name string) (*libcni.NetworkConfigList, error) {
	list, err := libcni.LoadNetworkConf(c.ConfigDir, name)
	var missing libcni.NotFoundError
	var none libcni.NoConfigsFoundError
	if errors.As(err, &missing) || errors.As(err, &none) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q is not in %s", ErrNoCNINetwork, name, c.ConfigDir)
	}
	if err != nil {
		return nil, fmt.Errorf("CNI network %q: %w", name, err)
	}
	for _, p := range list.Plugins {
		if _, err := invoke.FindInPath(p.Network.Type, c.PluginDirs); err != nil {
			return nil, fmt.Errorf("CNI network %q: plugin %q is in none of %s", name, p.Network.Type, strings.Join(c.PluginDirs, ", "))
		}
	}
	return list, nil
}

// configCopy keeps what a network was connected with: its configuration may
// change before it is disconnected.
const configCopy = "network.conflist"

// Connect adds the container, by its network namespace, to the network called
// name. Whatever must be known to take it out again is in dir, which is made,
// before anything is done.
func (c CNI) Connect(ctx context.Context, name, id, dir string, ns *os.File) (_ *CNIConnection, err error) {
	list, err := c.load(name)
	if err == nil {
		err = refuseOwnNetns(ns)
	}
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("CNI network %q: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, configCopy), list.Bytes, 0o600); err != nil {
		return nil, fmt.Errorf("CNI network %q: %w", name, err)
	}
	// Not /proc/self: it is the plugin that opens it.
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
	conn := &CNIConnection{cni: c, att: attachment{name, id, dir, path}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("CNI network %q: %w", name, err), conn.Close(context.WithoutCancel(ctx)))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	result, err := c.library(dir).AddNetworkList(ctx, list, conn.att.runtime())
	if err != nil {
		return nil, err
	}
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("result of the plugins: %w", err)
	}
	for _, ip := range r.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			conn.Addresses = append(conn.Addresses, a.Unmap())
		}
	}
	conn.Resolver = resolverOf(r.DNS)
	return conn, nil
}

// resolverOf reads the DNS part of a result.
func resolverOf(d types.DNS) (r Resolver) {
	for _, s := range d.Nameservers {
		if a, err := netip.ParseAddr(s); err == nil {
			r.Servers = append(r.Servers, a.Unmap())
		}
	}
	if d.Domain != "" {
		r.Other += "domain " + d.Domain + "\n"
	}
	if len(d.Search) > 0 {
		r.Other += "search " + strings.Join(d.Search, " ") + "\n"
	}
	if len(d.Options) > 0 {
		r.Other += "options " + strings.Join(d.Options, " ") + "\n"
	}
	return r
}

// Names is how the container finds names: as its network says, or else as the
// host does.
func (c *CNIConnection) Names(ns *os.File) (*Names, error) {
	if len(c.Resolver.Servers) > 0 {
		return c.Resolver.names(ns)
	}
	ipv6 := false
	for _, a := range c.Addresses {
		ipv6 = ipv6 || a.Is6() && !a.IsLinkLocalUnicast()
	}
	return HostNames(ns, ipv6)
}

// Close takes the container out of the network.
func (c *CNIConnection) Close(ctx context.Context) error {
	return c.cni.remove(ctx, c.att)
}

// Cleanup takes a container out of the network whose process has died; dir is
// what Connect was given. Nothing to do is no error.
func (c CNI) Cleanup(ctx context.Context, name, id, dir string) error {
	return c.remove(ctx, attachment{network: name, id: id, dir: dir})
}

func (c CNI) remove(ctx context.Context, a attachment) error {
	text, err := os.ReadFile(filepath.Join(a.dir, configCopy))
	if errors.Is(err, os.ErrNotExist) {
		return nil // never begun
	}
	if err != nil {
		return fmt.Errorf("leave CNI network %q: %w", a.network, err)
	}
	list, err := libcni.NetworkConfFromBytes(text)
	if err != nil {
		return fmt.Errorf("leave CNI network %q: %w", a.network, err)
	}
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	if err := c.library(a.dir).DelNetworkList(ctx, list, a.runtime()); err != nil {
		return fmt.Errorf("leave CNI network %q: %w", a.network, err)
	}
	return os.RemoveAll(a.dir)
}

func (c CNI) library(dir string) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(c.PluginDirs, dir, &pluginExec{})
}

func (a attachment) runtime() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: a.id, NetNS: a.ns, IfName: ifName}
}

// pluginExec runs plugins: they end with this process, so that what they do is
// over when somebody cleans up after it, and see nothing of its environment,
// which may hold tokens.
type pluginExec struct{ version.PluginDecoder }

// ExecPlugin implements invoke.Exec.
func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path)
	for _, kv := range environ {
		if strings.HasPrefix(kv, "CNI_") || strings.HasPrefix(kv, "PATH=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return stdout.Bytes(), nil
	}
	return nil, pluginError(filepath.Base(path), err, stdout.Bytes(), stderr.Bytes())
}

// pluginError is what a plugin says of its failure, on stdout as a JSON object
// (CNI specification, section 5).
func pluginError(name string, err error, stdout, stderr []byte) error {
	const most = 1000
	var said types.Error
	if jsonErr := json.Unmarshal(stdout, &said); jsonErr == nil && said.Msg != "" {
		return fmt.Errorf("plugin %s: %w", name, &said)
	}
	text := strings.TrimSpace(string(append(stdout, stderr...)))
	if len(text) > most {
		text = text[:most]
	}
	return fmt.Errorf("plugin %s: %w: %s", name, err, text)
}

// FindInPath implements invoke.Exec.
func (*pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}
