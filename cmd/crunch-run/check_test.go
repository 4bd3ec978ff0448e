package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// report is what "crunch-run check --json" prints.
type report struct {
	Healthy  bool
	Findings []struct{ Area, Level, Text, Advice string } `json:"checks"`
	Settings []struct{ Name, Value, Origin string }
}

// find returns the texts of the findings of an area and a level, with the advice.
func (r report) find(area, level string) string {
	var b strings.Builder
	for _, f := range r.Findings {
		if f.Area == area && f.Level == level {
			fmt.Fprintf(&b, "%s -> %s\n", f.Text, f.Advice)
		}
	}
	return b.String()
}

// checkIn runs the check after a shell script in a mount namespace of its own,
// in which the node can lack things.
func (n *node) checkIn(t testing.TB, script string, env ...string) (report, int) {
	t.Helper()
	command := []string{"unshare", "--mount", "sh", "-ec", script + `; exec "$@"`, "sh", program, "check", "--json", "--timeout", "1m"}
	if n.netns != "" {
		command = append([]string{"nsenter", "--net=" + n.netns}, command...)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(append(append(cleanEnv(), n.settings()...), "CRUNCH_RUN_NETWORK=bridge"), env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // the state says it
	var r report
	if err := json.Unmarshal([]byte(stdout.String()), &r); err != nil {
		t.Fatalf("%v: %s\n%s", err, stdout.String(), stderr.String())
	}
	code := cmd.ProcessState.ExitCode()
	if r.Healthy != (code == 0) {
		t.Errorf("healthy: %v, exit code %d", r.Healthy, code)
	}
	return r, code
}

// A node that has everything is fit, and is left as it was: not even its
// directories are made.
func TestCheck(t *testing.T) {
	t.Parallel()
	n := newNetworkNode(t)
	fresh := filepath.Join(t.TempDir(), "a", "b")
	r, code := n.checkIn(t, "sysctl -qw net.ipv4.ip_forward=1", "CRUNCH_RUN_STORE_DIR="+filepath.Join(fresh, "store"), "CRUNCH_RUN_RUNTIME_DIR="+filepath.Join(fresh, "run"), "CRUNCH_RUN_PIDS_LIMIT=999")
	if code != 0 {
		t.Errorf("exit code %d: %+v", code, r.Findings)
	}
	for area, want := range map[string]string{
		"privileges": "root with the capabilities", "kernel": "seccomp filters", "cgroups": "v", "image store": "will be made",
		"temporary files": n.tmp(), "container": "a container was run", "FUSE": "/dev/fuse, and a mount", "network": "containers' subnet is 172.30.0.0/20", "settings": "values other than the default",
	} {
		if got := r.find(area, "ok"); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", area, got, want)
		}
	}
	found := false
	for _, s := range r.Settings {
		found = found || s.Name == "pids-limit" && s.Value == "999" && s.Origin == "CRUNCH_RUN_PIDS_LIMIT"
	}
	if !found {
		t.Errorf("settings %+v", r.Settings)
	}
	if _, err := os.Lstat(filepath.Dir(fresh)); !os.IsNotExist(err) {
		t.Errorf("made and left: %v", err)
	}

	res := n.run(t, "check", "--timeout", "1m")
	if res.code != 0 || strings.Contains(res.stdout, "\x1b") || !strings.Contains(res.stdout, "This node can run containers") || !strings.Contains(res.stdout, "\n  store-dir ") {
		t.Errorf("the table, not on a terminal: %d\n%s", res.code, res.stdout)
	}
	for _, args := range [][]string{{"check", "x"}, {"check", "--nonsense"}, {"check", "--timeout", "0s"}} {
		if res := n.run(t, args...); res.code != 2 || strings.Count(res.stderr, "\n") != 1 {
			t.Errorf("%q: %d %q", args, res.code, res.stderr)
		}
	}
}

// What a node lacks is a red line, with what to do about it.
func TestCheckLacking(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	for name, c := range map[string]struct {
		script, env  string
		after        string // undoes the script, where the namespace does not
		area, level  string
		text, advice string
		fit          bool
	}{
		"no FUSE":            {script: "mount -t tmpfs tmpfs /dev; mknod -m 666 /dev/null c 1 3", area: "FUSE", text: "/dev/fuse: no such file or directory", advice: "modprobe fuse"},
		"no /proc":           {script: "umount -Rl /proc", area: "mounts", text: "/proc", advice: "every start"},
		"no devices":         {script: "mount -t tmpfs tmpfs /dev", area: "kernel", text: "/dev/urandom is missing", advice: "devtmpfs"},
		"no cgroups":         {script: "umount -Rl /sys/fs/cgroup", area: "cgroups", text: "no cgroup file system is mounted", advice: "mount -t cgroup2"},
		"read-only store":    {script: "mount -t tmpfs -o ro tmpfs " + store, env: "CRUNCH_RUN_STORE_DIR=" + store, area: "image store", text: "read-only file system", advice: "store-dir"},
		"full store":         {script: "mount -t tmpfs -o size=1m tmpfs " + store, env: "CRUNCH_RUN_STORE_DIR=" + store, area: "image store", text: "free on tmpfs", advice: "free some space"},
		"no inodes":          {script: "mount -t tmpfs -o nr_inodes=500 tmpfs " + store, env: "CRUNCH_RUN_STORE_DIR=" + store, area: "image store", text: "files only", advice: "free some space"},
		"store is a file":    {script: "true", env: "CRUNCH_RUN_STORE_DIR=/etc/passwd", area: "image store", text: "/etc/passwd is not a directory", advice: "store-dir"},
		"scratch on overlay": {script: "mkdir l u w m; mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m", env: "TMPDIR=m", area: "container", text: "an overlay of image store and temporary files", advice: "local file systems"},
		"no attributes":      {script: "mkdir m; mount -t ramfs ramfs m", env: "TMPDIR=m", area: "container", text: "overlay of image store and temporary files", advice: "ext4 or xfs"},
		"no seccomp":         {script: "mount --bind /dev/null /proc/sys/kernel/seccomp/actions_avail", area: "kernel", text: "the kernel cannot filter system calls", advice: "CONFIG_SECCOMP_FILTER"},
		"cgroups read-only":  {script: "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do if mountpoint -q $d; then mount -o remount,bind,ro $d; fi; done", area: "container", text: "read-only file system", advice: "every container"},
		"no scratch":         {script: "true", env: "TMPDIR=/nonexistent/tmp", area: "temporary files", text: "is not a directory", advice: "TMPDIR"},
		"no locks":           {script: "true", env: "CRUNCH_RUN_LOCK_DIR=/nonexistent/lock", area: "state", text: "directory of run locks", advice: "mkdir -p /nonexistent/lock"},
		"marked as broken":   {script: "touch crunch-run-broken", env: "CRUNCH_RUN_LOCK_DIR=.", area: "state", text: "marked this node as broken", advice: "remove the file"},
		"bad setting":        {script: "true", env: "CRUNCH_RUN_PIDS_LIMIT=x", area: "settings", text: `pids-limit: "x"`, advice: "correct"},
		"unknown CNI":        {script: "true", env: "CRUNCH_RUN_NETWORK=cni:nowhere", area: "network", text: "no such CNI network", advice: "set network"},
		"forwarding is off":  {script: "sysctl -qw net.ipv4.ip_forward=0", area: "network", level: "warning", text: "net.ipv4.ip_forward is off", advice: "sysctl -w", fit: true},
		"and stays off":      {script: "sysctl -qw net.ipv4.ip_forward=0; mount --bind -o ro /proc/sys /proc/sys", area: "network", text: "cannot be switched on: read-only file system", advice: "sysctl -w"},
		"closed firewall":    {script: "nft add table ip c; nft 'add chain ip c passing { type filter hook forward priority 0; policy drop; }'", after: "nft delete table ip c", area: "network", level: "warning", text: "the firewall chain ip c passing drops by default", advice: "nft insert rule", fit: true},
		"name is taken":      {script: "ip link add crunch0 type bridge; ip addr add 10.1.0.1/16 dev crunch0", after: "ip link del crunch0", area: "network", text: "not crunch-run's", advice: "network-bridge"},
		"no net admin":       {script: `set -- setpriv --bounding-set -net_admin "$@"`, area: "privileges", text: "NET_ADMIN", advice: "full privileges"},
		"too many files":     {script: "true", env: "CRUNCH_RUN_ULIMITS=nofile=unlimited", area: "container", text: "setting ulimits: RLIMIT_NOFILE: this node's kernel allows", advice: "every container"},
		"limits above ours":  {script: `ulimit -Hc 1; set -- setpriv --bounding-set -sys_resource "$@"`, env: "CRUNCH_RUN_ULIMITS=core=0:1048576", area: "container", text: "RLIMIT_CORE: crunch-run itself was started with a limit of 512", advice: "every container"},
		"no name server":     {script: "mount --bind /dev/null /etc/resolv.conf", area: "network", level: "warning", text: "no name server", advice: "/etc/resolv.conf", fit: true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetworkNode(t)
			work := t.TempDir()
			defer in(t, n.netns, "true; "+c.after)
			env := strings.NewReplacer("=m", "="+work+"/m", "=.", "="+work).Replace(c.env)
			r, code := n.checkIn(t, "cd "+work+"; "+c.script, env)
			if c.level == "" {
				c.level = "failure"
			}
			if got := r.find(c.area, c.level); !strings.Contains(got, c.text) || !strings.Contains(got, c.advice) {
				t.Errorf("%s: %q, want %q and %q; all: %+v", c.area, got, c.text, c.advice, r.Findings)
			}
			if (code == 0) != c.fit {
				t.Errorf("exit code %d: %+v", code, r.Findings)
			}
		})
	}
}

// The node's clock is compared with the API server's, if one is known, as far as it
// answers at all.
func TestCheckClock(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for name, c := range map[string]struct {
		offset       time.Duration // of the server's clock
		date         string        // what it says instead of a date
		level        string
		text, advice string
		fit          bool
	}{
		"right":         {level: "warning", fit: true, advice: "chrony"}, // kept right by nobody, perhaps
		"an hour ahead": {offset: -time.Hour, level: "failure", text: "1h0m0s ahead of the cluster's clock", advice: "set the clock"},
		"a year behind": {offset: 366 * 24 * time.Hour, level: "failure", text: "behind the cluster's clock", advice: "set the clock"},
		"a little":      {offset: -time.Minute, level: "warning", text: "ahead of the cluster's clock", advice: "chrony", fit: true},
		"no date":       {date: "yesterday", level: "warning", text: "is not compared", advice: "ARVADOS_API_HOST", fit: true},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" {
					t.Error("a token is sent to a server whose certificate is not checked")
				}
				date := time.Now().Add(c.offset).UTC().Format(http.TimeFormat)
				if c.date != "" {
					date = c.date
				}
				w.Header().Set("Date", date)
			}))
			defer server.Close()
			r, code := n.checkIn(t, "true", "CRUNCH_RUN_NETWORK=host", "ARVADOS_API_HOST="+strings.TrimPrefix(server.URL, "https://"), "ARVADOS_API_TOKEN=secret")
			got := r.find("clock", c.level)
			if name == "right" {
				if got+r.find("clock", "failure") != "" && strings.Contains(got, "the cluster's clock") {
					t.Errorf("a right clock is called wrong: %q", got)
				}
			} else if !strings.Contains(got, c.text) || !strings.Contains(got, c.advice) {
				t.Errorf("%q, want %q and %q", got, c.text, c.advice)
			}
			if (code == 0) != c.fit {
				t.Errorf("exit code %d: %+v", code, r.Findings)
			}
		})
	}
}

// A disk that does not answer holds up nothing: what hangs is said, and so is the
// rest.
func TestCheckHangingStore(t *testing.T) {
	t.Parallel()
	n := newNetworkNode(t)
	dir := t.TempDir()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Mount("hanging", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", f.Fd())); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	p := n.start(t, run{args: []string{"check"}, env: []string{"CRUNCH_RUN_STORE_DIR=" + dir}})
	if code := p.wait(t); code != 1 {
		t.Errorf("exit code %d", code)
	}
	out := p.stdout.String()
	if !strings.Contains(out, "no answer within 1.6s") || !strings.Contains(out, "image store") || !strings.Contains(out, "clock") {
		t.Errorf("says:\n%s", out)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
	_ = f.Close()
	n.cleaned(t) // by lists, of what could not be removed then
}

// Who is not root is told so, in a sentence or in JSON.
func TestCheckUnprivileged(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "crunch-run-open.")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "crunch-run")
	if out, err := exec.Command("sh", "-ec", `chmod 755 "$1"; cp "$2" "$3"; chmod 755 "$3"`, "sh", dir, program, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, flags := range [][]string{nil, {"--json"}} {
		cmd := exec.Command("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", path, "check"}, flags...)...)
		cmd.Env = cleanEnv()
		out, _ := cmd.Output()
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "only root can check a node") || !strings.Contains(string(out), "sudo crunch-run check") {
			t.Errorf("%v: %d %s", flags, cmd.ProcessState.ExitCode(), out)
		}
	}
}
