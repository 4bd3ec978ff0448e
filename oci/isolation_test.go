package oci_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crunch-oci/oci"
)

type (
	specRlimit = specs.POSIXRlimit
	specsSpec  = specs.Spec
)

func mkfifo(t *testing.T, name string) {
	t.Helper()
	must(t, unix.Mkfifo(name, 0o600))
}

// Whatever this process has open, the container has its three streams only,
// and no way from them to the host.
func TestNoDescriptorsLeak(t *testing.T) {
	// An inheritable directory, as in CVE-2024-21626.
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	got := runScript(t, "ls /proc/$$/fd; ls /proc/1/fd; readlink /proc/$$/cwd")
	if want := "0\n1\n2\n0\n1\n2\n/\n"; got != want {
		t.Errorf("descriptors:\n%s", got)
	}
}

func TestNamespacesAndProcesses(t *testing.T) {
	for _, network := range []oci.Network{oci.NetworkNone, oci.NetworkHost} {
		got := runScript(t, "cd /proc/self/ns; for n in pid mnt uts ipc net; do echo $n $(readlink $n); done; echo $$; ls /proc | grep -c '^[0-9]'",
			func(r *oci.Request) { r.Network = network })
		for line := range strings.Lines(got) {
			name, ns, ok := strings.Cut(strings.TrimSpace(line), " ")
			if !ok {
				continue
			}
			host, err := os.Readlink("/proc/thread-self/ns/" + name)
			must(t, err)
			shared := name == "net" && network == oci.NetworkHost
			if (ns == host) != shared {
				t.Errorf("network %s: namespace %s is %s, the host's is %s", network, name, ns, host)
			}
		}
		if !strings.Contains(got, "\n1\n") {
			t.Errorf("the command is not process 1: %q", got)
		}
	}
}

func TestNetworkNoneHasLoopback(t *testing.T) {
	got := runScript(t, "ip addr show lo | grep -c 'inet 127.0.0.1'; ip link | grep -c '^[0-9]'; grep -c . /proc/net/route; "+
		// A server that is told nothing ends when its client does, not before.
		"mkfifo /tmp/f; exec 3<>/tmp/f; nc -l -p 9 <&3 >/tmp/got & i=0; until echo hi | nc 127.0.0.1 9 2>/dev/null; do i=$((i+1)); [ $i -lt 200 ] || exit 1; sleep 0.05; done; wait; cat /tmp/got",
		func(r *oci.Request) { r.User = "alice" })
	if got != "1\n1\n1\nhi\n" {
		// One interface, no route, and a low port open to any user.
		t.Errorf("got %q", got)
	}
}

func TestLimitsAreSet(t *testing.T) {
	req := newRequest(t, newID(), "cat /proc/self/oom_score_adj; mount | grep -o 'shm .*size=[0-9]*k'")
	req.Limits = oci.Limits{RAM: 256 << 20, NanoCPUs: 1_500_000_000, PIDs: 100, Shm: 1 << 20}
	b, err := create(t, req, nil)
	must(t, err)
	read := func(controller, name string) string {
		dir, ok := b.ctr.Cgroup().Dirs[controller]
		if !ok {
			dir = b.ctr.Cgroup().Dirs[""]
		}
		text, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		return strings.TrimSpace(string(text))
	}
	if _, v1 := b.ctr.Cgroup().Dirs["memory"]; v1 {
		for _, f := range []struct{ controller, name, want string }{
			{"memory", "memory.limit_in_bytes", fmt.Sprint(256 << 20)},
			{"memory", "memory.memsw.limit_in_bytes", fmt.Sprint(256 << 20)},
			{"cpu", "cpu.cfs_quota_us", "150000"},
			{"cpu", "cpu.cfs_period_us", "100000"},
			{"pids", "pids.max", "100"},
		} {
			if got := read(f.controller, f.name); got != f.want {
				t.Errorf("%s is %s, want %s", f.name, got, f.want)
			}
		}
	} else {
		for _, f := range []struct{ name, want string }{
			{"memory.max", fmt.Sprint(256 << 20)}, {"memory.swap.max", "0"}, {"cpu.max", "150000 100000"}, {"pids.max", "100"},
		} {
			if got := read("", f.name); got != f.want {
				t.Errorf("%s is %s, want %s", f.name, got, f.want)
			}
		}
	}
	if w := b.ctr.Warnings(); len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
	must(t, b.ctr.Start(t.Context()))
	b.wait()
	if got := b.stdout.String(); !strings.HasPrefix(got, "0\nshm ") || !strings.HasSuffix(got, "size=1024k\n") {
		t.Errorf("oom score and /dev/shm: %q", got)
	}
}

// Docker's default capabilities; none for other users.
func TestCapabilities(t *testing.T) {
	const docker = "00000000a80425fb"
	for user, want := range map[string]string{"": docker, "alice": "0000000000000000"} {
		got := runScript(t, "grep -E 'Cap(Inh|Eff|Bnd|Amb)' /proc/self/status", func(r *oci.Request) { r.User = user })
		if got != "CapInh:\t0000000000000000\nCapEff:\t"+want+"\nCapBnd:\t"+docker+"\nCapAmb:\t0000000000000000\n" {
			t.Errorf("user %q: %q", user, got)
		}
	}
}

func TestNoNewPrivileges(t *testing.T) {
	for _, on := range []bool{false, true} {
		got := runScript(t, "grep NoNewPrivs /proc/self/status", func(r *oci.Request) { r.NoNewPrivileges = on })
		if want := map[bool]string{false: "0", true: "1"}[on]; got != "NoNewPrivs:\t"+want+"\n" {
			t.Errorf("%v: %q", on, got)
		}
	}
}

func TestKernelTablesAreProtected(t *testing.T) {
	got := runScript(t, `
		for f in /proc/sys/kernel/panic /sys/kernel/mm/ksm/run /proc/sysrq-trigger; do
			(echo 0 > $f) 2>/dev/null && echo "$f is writable"
		done
		cat /proc/kcore 2>/dev/null | head -c 1 | wc -c
		cat /proc/keys 2>/dev/null | wc -c
		ls /sys/firmware | wc -l
		for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done
		mknod /tmp/disk b 254 0 && (head -c 1 /tmp/disk >/dev/null 2>&1 && echo "disk is readable")
		for h in $(ls /sys/fs/cgroup | head -n 3); do (touch /sys/fs/cgroup/$h/x || mkdir /sys/fs/cgroup/$h/x) 2>/dev/null && echo "cgroup is writable"; done
		true
	`)
	if got != "0\n0\n0\n" {
		t.Errorf("got %q", got)
	}
}

func TestRootIsWritable(t *testing.T) {
	if got := runScript(t, "echo x > /new && cat /new && umask"); got != "x\n0022\n" {
		t.Errorf("got %q", got)
	}
}
