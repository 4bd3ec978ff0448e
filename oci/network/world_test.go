package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// These tests run in a network namespace of their own, into which the test
// program starts itself again, so that the machine's is not touched.
const inNamespace = "CRUNCH_RUN_TEST_NETNS"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of oci/network need root: they make network namespaces")
		os.Exit(1)
	}
	if os.Getenv(inNamespace) == "" {
		os.Exit(again())
	}
	if err := bringUp("lo"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func bringUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNamespace makes a network namespace that lives as long as the file, with
// loopback up, as a container's init has it.
func newNamespace(t testing.TB) *os.File {
	t.Helper()
	var f *os.File
	var err error
	done := make(chan struct{})
	go offMainThread(func() {
		defer close(done)
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if err = bringUp("lo"); err != nil {
			return
		}
		f, err = os.Open("/proc/thread-self/ns/net")
	})
	<-done
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// What is on the far side of the uplink.
var (
	farRouter = netip.MustParseAddr("192.0.2.1")
	hostAddr  = netip.MustParseAddr("192.0.2.2")
	farServer = netip.MustParseAddr("203.0.113.5")

	farRouter6 = netip.MustParseAddr("2001:db8:1::1")
	hostAddr6  = netip.MustParseAddr("2001:db8:1::2")
	farServer6 = netip.MustParseAddr("2001:db8:5::5")
)

const uplinkMTU = 1400

// world is a host with an uplink to a router, behind which is a server.
type world struct {
	far *os.File
	// tcp and udp are the ports on which the far server says who asks it.
	tcp, udp int
}

// newWorld gives the tests' network namespace an uplink, and with ipv6 one for
// that as well. The test fails if it leaves more interfaces or rules than it
// found.
func newWorld(t testing.TB, ipv6 bool) *world {
	t.Helper()
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		must(t, setSysctl(name, "0"))
	}
	w := &world{far: newNamespace(t)}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "uplink", uplinkMTU
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far", PeerNamespace: netlink.NsFd(w.far.Fd())}))
	near, err := netlink.LinkByName("uplink")
	must(t, err)
	h, err := netlink.NewHandleAt(netns.NsHandle(w.far.Fd()))
	must(t, err)
	defer h.Close()
	far, err := h.LinkByName("far")
	must(t, err)
	lo, err := h.LinkByName("lo")
	must(t, err)
	addr := func(a netip.Addr, bits int) *netlink.Addr {
		return &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(a, bits)), Flags: flagsFor(a)}
	}
	must(t, h.AddrAdd(lo, addr(farServer, 32)))
	must(t, h.AddrAdd(far, addr(farRouter, 24)))
	must(t, netlink.AddrAdd(near, addr(hostAddr, 24)))
	if ipv6 {
		must(t, h.AddrAdd(lo, addr(farServer6, 128)))
		must(t, h.AddrAdd(far, addr(farRouter6, 64)))
		must(t, netlink.AddrAdd(near, addr(hostAddr6, 64)))
	}
	must(t, h.LinkSetUp(far))
	must(t, netlink.LinkSetUp(near))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: near.Attrs().Index, Gw: farRouter.AsSlice()}))
	if ipv6 {
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: near.Attrs().Index, Dst: toIPNet(netip.MustParsePrefix("::/0")), Gw: farRouter6.AsSlice()}))
	}
	w.serve(t)
	before := hostState(t)
	t.Cleanup(func() {
		if after := hostState(t); after != before {
			t.Errorf("left on the host:\n%s\nbefore:\n%s", after, before)
		}
		_ = netlink.LinkDel(near)
	})
	return w
}

func flagsFor(a netip.Addr) int {
	if a.Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

// serve starts the far server, which says from which address it was asked.
func (w *world) serve(t testing.TB) {
	t.Helper()
	must(t, inside(w.far, func() error {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		w.tcp = l.Addr().(*net.TCPAddr).Port
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprint(c, host)
				_ = c.Close()
			}
		}()
		u, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = u.Close() })
		w.udp = u.LocalAddr().(*net.UDPAddr).Port
		return nil
	}))
}

// ask asks a server from inside a namespace, and returns what it says.
func ask(ns *os.File, server netip.Addr, port int) (string, error) {
	var text []byte
	err := inside(ns, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(server, uint16(port)).String())
		if err != nil {
			return err
		}
		defer c.Close()
		text, err = io.ReadAll(c)
		return err
	})
	return string(text), err
}

// hostState shows interfaces and rules.
func hostState(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		fmt.Fprintln(&b, l.Attrs().Name, l.Type(), l.Attrs().Alias)
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	b.Write(out)
	return b.String()
}

func nft(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft %s: %v\n%s", script, err, out)
	}
}

func newBridge(t testing.TB) *Bridge {
	t.Helper()
	b, err := New(Config{StateDir: filepath.Join(t.TempDir(), "state")})
	must(t, err)
	return b
}
