package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crunch-oci/arvados"
)

// A container with every kind of mount looks at all there is to see of the node it
// is on: of its supervisor's tokens, settings, sockets, files and processes, and
// of mounts that it was not given, it finds nothing, as root and as somebody else,
// with and without a user namespace.
func TestContainerSeesNothingOfTheHost(t *testing.T) {
	t.Parallel()
	for name, setting := range map[string]string{"plain": "", "user namespace": "CRUNCH_RUN_USER_NAMESPACE=300000:65536", "init": "CRUNCH_RUN_INIT=on"} {
		t.Run(name, func(t *testing.T) {
			n := newMappedNode(t)
			n.env = append(n.env[:0], "HOST_SECRET=host-secret-value")
			if setting != "" {
				n.env = append(n.env, setting)
			}
			c := startCluster(t, n)
			input := c.store(t, map[string][]byte{"in.txt": []byte("input\n")})
			look := `echo "== environ"; for p in /proc/[0-9]*; do tr '\0' '\n' <$p/environ 2>/dev/null; done | grep -v '^PATH=\|^HOME=\|^HOSTNAME=\|^FROM_IMAGE=\|^SHLVL=\|^PWD=\|^_=' | sort -u
				echo "== cmdline"; for p in /proc/[0-9]*; do tr '\0\n' '  ' <$p/cmdline | cut -c1-40; echo; done | grep -v '^sh -c\|^crunch-init\|^tr \|^cut \|^grep \|^sort \|^$\|^probe as'
				echo "== fds"; for p in /proc/[0-9]*; do [ -r $p/fd ] && for f in $p/fd/*; do readlink $f; done; done | grep -v '^pipe:\|^/dev/null$\|^/proc/[0-9]*/fd$\|^/proc/[0-9]*/cmdline$\|^/proc/[0-9]*/environ$' | sort -u
				echo "== mounts"; sed 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .*/\1/' /proc/self/mountinfo | grep -v '^/sys/fs/cgroup\|^/dev/[a-z]*$\|^/proc/[a-z_-]*$' | sort
				echo "== end"`
			uuid := c.submit(t, c.storeTools(t), sh(look+"; probe as 1000 sh -c "+fmt.Sprintf("'%s'", strings.ReplaceAll(look, "'", `'\''`))), attrs{
				"mounts": attrs{
					"/out": attrs{"kind": "tmp", "capacity": 1 << 20}, "/in": attrs{"kind": "collection", "portable_data_hash": input},
					"/text": attrs{"kind": "text", "content": "t"}, "stdin": attrs{"kind": "json", "content": 1},
				},
			})
			record := c.finished(t, n, c.supervise(t, n, uuid), uuid, 0, arvados.StateComplete)
			want := "== environ\n== cmdline\n== fds\n== mounts\n" + strings.Join([]string{"/", "/dev", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/in", "/out", "/proc", "/sys", "/sys/firmware", "/text"}, "\n") + "\n== end\n"
			if _, err := os.Stat("/sys/firmware"); err != nil {
				want = strings.Replace(want, "/sys/firmware\n", "", 1)
			}
			if _, err := os.Stat("/sys/devices/virtual/powercap"); err == nil {
				want = strings.Replace(want, "/sys/firmware\n", "/sys/devices/virtual/powercap\n/sys/firmware\n", 1)
			}
			if got := stamped(t, c.log(t, record, "stdout.txt")); got != want+want {
				t.Errorf("got\n%s\nwant, twice,\n%s\nstderr %s", got, want, c.log(t, record, "stderr.txt"))
			}
		})
	}
}

// No socket of the supervisor's is an abstract one, which a container with the
// host's network could reach (CVE-2020-15257).
func TestNoAbstractSockets(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh(untilTold), nil)
	p := c.supervise(t, n, uuid)
	insideContainer(t, n)
	var inodes []string
	for _, proc := range n.processes() {
		if proc.contained {
			continue
		}
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", proc.pid))
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); strings.HasPrefix(to, "socket:[") {
				inodes = append(inodes, strings.Trim(to, "socket:[]"))
			}
		}
	}
	if len(inodes) == 0 {
		t.Error("the supervisor has no sockets at all")
	}
	for line := range strings.Lines(readFile(t, "/proc/net/unix")) {
		if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[7], "@") && slices.Contains(inodes, f[6]) {
			t.Errorf("abstract socket %s", f[7])
		}
	}
	release(t, n)
	c.finished(t, n, p, uuid, 0, arvados.StateComplete)
}
