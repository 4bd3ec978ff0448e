package main_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
)

// netns makes a network namespace that lives as long as the test, and returns
// its path.
func netns(t testing.TB) string {
	t.Helper()
	cmd := exec.Command("sleep", "1000000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
}

// in runs a shell script in a network namespace.
func in(t testing.TB, netns, script string) string {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+netns, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// farHost answers "far" on port 80, behind the uplink of a network node.
const farHost = "203.0.113.5"

// newNetworkNode makes a node in a network namespace with an uplink, which must
// have the interfaces and rules of the beginning in the end.
func newNetworkNode(t testing.TB) *node {
	t.Helper()
	near, far := netns(t), netns(t)
	farPID := strings.Split(far, "/")[2]
	in(t, near, "ip link set lo up; ip link add uplink mtu 1400 type veth peer name far netns "+farPID+
		"; ip addr add 192.0.2.2/24 dev uplink; ip link set uplink up; ip route add default via 192.0.2.1; sysctl -qw net.ipv4.ip_forward=0")
	in(t, far, "ip link set lo up; ip addr add "+farHost+"/32 dev lo; ip addr add 192.0.2.1/24 dev far; ip link set far up")
	www := t.TempDir()
	writeFile(t, filepath.Join(www, "index.html"), []byte("far\n"))
	server := exec.Command("nsenter", "--net="+far, "busybox", "httpd", "-f", "-p", farHost+":80", "-h", www)
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	forkthread.Do(func() { err = server.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	n := newNode(t)
	n.netns, n.prefix = near, []string{"nsenter", "--net=" + near}
	before := n.network(t)
	t.Cleanup(func() {
		if after := n.network(t); after != before {
			t.Errorf("left on the node:\n%s\nwant:\n%s", after, before)
		}
	})
	return n
}

// network shows the node's interfaces and rules.
func (n *node) network(t testing.TB) string {
	t.Helper()
	return in(t, n.netns, "ip -o link | awk -F': ' '{print $2}'; nft list ruleset")
}

func (n *node) toolsFile(t testing.TB) string {
	t.Helper()
	image := filepath.Join(n.dir, "image.tar")
	writeFile(t, image, toolsImage(t).dockerSave())
	return image
}

// A container on the bridge has an address of its own, which is its name's, and
// reaches the world and nothing of the host's loopback.
func TestBridge(t *testing.T) {
	t.Parallel()
	n := newNetworkNode(t)
	res := n.local(t, "--network", "bridge", "--verbose", "--image", n.toolsFile(t), "--", "sh", "-c",
		"wget -qO- http://"+farHost+"/; hostname -i; ip -o -4 addr show eth0 | awk '{print $4}'; cat /sys/class/net/eth0/mtu; ls /sys/class/net; ip route; cat /etc/resolv.conf")
	lines := strings.Split(res.stdout, "\n")
	if len(lines) < 7 || lines[0] != "far" || lines[1] == "" || lines[2] != lines[1]+"/20" || lines[3] != "1400" || lines[4] != "eth0" || lines[5] != "lo" || !strings.HasPrefix(lines[6], "default via 172.30.0.1 ") {
		t.Errorf("the container says %q", res.stdout)
	}
	for line := range strings.Lines(readFile(t, "/etc/resolv.conf")) {
		if strings.HasPrefix(line, "nameserver") && !strings.Contains(line, " 127.") && !strings.Contains(res.stdout, line) {
			t.Errorf("the container has not the host's %q", line)
		}
	}
	if want := "network: net.ipv4.ip_forward was off: switched on"; !strings.Contains(res.stderr, want) {
		t.Errorf("no %q in %s", want, res.stderr)
	}
}

// A container that asks the embedded API reaches it by the bridge.
func TestBridgeAPI(t *testing.T) {
	t.Parallel()
	n := newNetworkNode(t)
	res := n.local(t, "--api", "--image", n.toolsFile(t), "--", "sh", "-c", "probe whoami; echo $ARVADOS_API_HOST")
	if !strings.HasPrefix(res.stdout, "200 ") || !strings.Contains(res.stdout, "\n172.30.0.1:") {
		t.Errorf("the container says %q", res.stdout)
	}
}

// The same with a cluster that runs what is submitted to it.
func TestBridgeCluster(t *testing.T) {
	t.Parallel()
	n := newNetworkNode(t)
	image := n.toolsFile(t)
	p := n.start(t, run{args: []string{"cluster", "--dir", filepath.Join(n.dir, "cluster"), "--dispatch", "2"}, env: []string{"CRUNCH_RUN_NETWORK=bridge"}})
	p.stdout.mustSay(t, "ARVADOS_DISPATCHER_TOKEN=")
	var env []string
	for line := range strings.Lines(p.stdout.String()) {
		env = append(env, strings.ReplaceAll(strings.TrimPrefix(strings.TrimSpace(line), "export "), "'", ""))
	}
	client := func(args ...string) string {
		c := n.start(t, run{args: args, env: env})
		if code := c.wait(t); code != 0 {
			t.Fatalf("%q: exit code %d: %s", args, code, c.stderr.String())
		}
		return c.stdout.String()
	}
	client("image", "put", image)
	client("submit", "--image", "tools:latest", "--api", "--wait", "--", "sh", "-c", "probe whoami | grep '^200 '")
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("the cluster ends with %d", code)
	}
}

// bridgeStarts is how many containers TestBridgeStarts starts.
func bridgeStarts() int {
	if os.Getenv("CRUNCH_RUN_TEST_LONG") != "" {
		return 200
	}
	return 8
}

// Containers that come and go, half of them killed with their supervisor at any
// moment, leave interfaces and rules as they were, after lists.
func TestBridgeStarts(t *testing.T) {
	t.Parallel()
	n := newNetworkNode(t)
	image := n.toolsFile(t)
	before := n.network(t)
	n.local(t, "--network", "bridge", "--image", image, "--", "true") // has unpacked it
	for i := range bridgeStarts() {
		args := []string{"local", "--network", "bridge", "--image", image, "--", "sh", "-c", "wget -qO- http://" + farHost + "/; sleep 0.1"}
		if i%4 > 1 { // the API is on the bridge too, which is there before the container
			args = slices.Insert(args, 1, "--api")
		}
		p := n.start(t, run{args: args})
		if i%2 == 0 {
			if code := p.wait(t); code != 0 || p.stdout.String() != "far\n" {
				t.Errorf("exit code %d, says %q", code, p.stdout.String())
			}
			continue
		}
		select {
		case <-p.done:
		case <-time.After(time.Duration(rand.IntN(700)) * time.Millisecond):
		}
		killed(t, n, p)
	}
	n.cleaned(t)
	if after := n.network(t); after != before {
		t.Errorf("after all:\n%s\nwant:\n%s", after, before)
	}
}

// nameServer answers every question for an address with farHost, in a network
// namespace.
func nameServer(t testing.TB, netns, addr string) {
	t.Helper()
	var c net.PacketConn
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var ns *os.File
		if ns, err = os.Open(netns); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			c, err = net.ListenPacket("udp", addr)
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if n < 17 {
				continue
			}
			// RFC 1035: the question again, and for type A one answer that points
			// to the name in it.
			answer := append([]byte(nil), buf[:n]...)
			answer[2], answer[3] = 0x81, 0x80
			if answer[n-3] == 1 {
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 5)
			}
			_, _ = c.WriteTo(answer, from)
		}
	}()
}

// Names are found as the host finds them: by systemd-resolved's servers, or by
// one on the host's loopback, which the container cannot reach itself.
func TestBridgeNames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ server, resolv, upstream, want string }{
		"systemd-resolved": {"192.0.2.2:53", "nameserver 127.0.0.53\n", "nameserver 192.0.2.2\nsearch lab.example\n", "nameserver 192.0.2.2\nsearch lab.example\n"},
		"own server":       {"127.0.0.1:53", "nameserver 127.0.0.1\nsearch lab.example\n", "", "nameserver 127.0.0.11\nsearch lab.example\n"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetworkNode(t)
			nameServer(t, n.netns, c.server)
			etc := t.TempDir()
			writeFile(t, filepath.Join(etc, "resolv.conf"), []byte(c.resolv))
			writeFile(t, filepath.Join(etc, "upstream"), []byte(c.upstream))
			n.prefix = append(n.prefix, "unshare", "--mount", "sh", "-ec",
				"mount --bind "+etc+"/resolv.conf /etc/resolv.conf; mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/resolve; cp "+etc+"/upstream /run/systemd/resolve/resolv.conf; exec \"$@\"", "sh")
			res := n.local(t, "--network", "bridge", "--image", n.toolsFile(t), "--", "sh", "-c", "cat /etc/resolv.conf; wget -qO- http://www.far.example/")
			if res.stdout != c.want+"far\n" {
				t.Errorf("the container says %q, want %q", res.stdout, c.want+"far\n")
			}
		})
	}
}

// A firewall that is in the way is said.
func TestBridgeBehindFirewall(t *testing.T) {
	t.Parallel()
	n := newNetworkNode(t)
	in(t, n.netns, "nft add table inet site; nft 'add chain inet site passing { type filter hook forward priority 0; policy drop; }'")
	defer in(t, n.netns, "nft delete table inet site")
	res := n.local(t, "--network", "bridge", "--verbose", "--image", n.toolsFile(t), "--", "true")
	if want := "network: the firewall chain inet site passing drops by default"; !strings.Contains(res.stderr, want) {
		t.Errorf("no %q in %s", want, res.stderr)
	}
}

// A container in a CNI network of the site's, and one whose supervisor is killed:
// what the plugins hold for them is given back.
func TestCNINetwork(t *testing.T) {
	t.Parallel()
	n := newNetworkNode(t)
	in(t, n.netns, "sysctl -qw net.ipv4.ip_forward=1")
	conf, leases := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(conf, "lab.conf"), []byte(`{"cniVersion": "0.4.0", "name": "lab", "type": "bridge", "bridge": "labbr0", "isGateway": true, "ipMasq": true,
		"ipam": {"type": "host-local", "dataDir": "`+leases+`", "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}`))
	defer in(t, n.netns, "ip link del labbr0; nft flush ruleset") // what the plugin keeps
	held := func() []string {
		found, err := filepath.Glob(filepath.Join(leases, "lab", "10.77.*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	settings := []string{"CRUNCH_RUN_NETWORK=cni:lab", "CRUNCH_RUN_CNI_CONFIG_DIR=" + conf}
	p := n.start(t, run{args: []string{"cluster", "--dir", filepath.Join(n.dir, "cluster"), "--dispatch", "1"}, env: settings})
	p.stdout.mustSay(t, "ARVADOS_DISPATCHER_TOKEN=")
	var env []string
	for line := range strings.Lines(p.stdout.String()) {
		env = append(env, strings.ReplaceAll(strings.TrimPrefix(strings.TrimSpace(line), "export "), "'", ""))
	}
	client := func(args ...string) *process { return n.start(t, run{args: args, env: env}) }
	if c := client("image", "put", n.toolsFile(t)); c.wait(t) != 0 {
		t.Fatal(c.stderr.String())
	}
	script := "hostname -i | grep ^10.77.0. && wget -qO- http://" + farHost + "/ | grep far"
	if c := client("submit", "--image", "tools:latest", "--api", "--wait", "--", "sh", "-c", script); c.wait(t) != 0 {
		t.Errorf("the container: %s", c.stdout.String())
	}
	if left := held(); len(left) > 0 {
		t.Errorf("leases %v after the container's end", left)
	}
	client("submit", "--image", "tools:latest", "--api", "--", "sleep", "1000").wait(t)
	waitFor(t, "the container's address", func() bool { return len(held()) > 0 })
	p.stderr.mustSay(t, "Waiting for container to finish")
	waitFor(t, "the container", func() bool {
		for _, f := range n.processes() {
			if f.contained && f.command == "sleep 1000" {
				return true
			}
		}
		return false
	})
	killed(t, n, p)
	if res := n.run(t, "--list"); res.code != 0 {
		t.Errorf("--list: %d %s", res.code, res.stderr)
	}
	if left := held(); len(left) > 0 {
		t.Errorf("leases %v after the supervisor's death", left)
	}
}
