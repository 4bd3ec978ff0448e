package main_test

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// abuse is a container that does what it should not.
type abuse struct {
	name   string
	script string
	other  attrs
	flags  []string
	code   int // -1: does not matter
	// stopped: the container is stopped when it has made a file "ready". fails:
	// it cannot be started. Both end Cancelled.
	stopped, fails bool
	stdout         string // "*": does not matter
	log            string // crunch-run.txt says so
	output         map[string]string
}

// TestAbuse runs containers that take all they can get, and try what they may
// not. Each has the end that its user expects, the node is clean afterwards, and
// the next container runs as ever.
func TestAbuse(t *testing.T) {
	t.Parallel()
	long := os.Getenv("CRUNCH_RUN_TEST_LONG") != ""
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	environment := func(count, size int) attrs {
		env := attrs{}
		for i := range count {
			env[fmt.Sprintf("V%d", i)] = strings.Repeat("x", size)
		}
		return attrs{"environment": env}
	}
	texts := func(count int) attrs {
		mounts := attrs{"/out": attrs{"kind": "tmp", "capacity": 1 << 20}}
		for i := range count {
			mounts[fmt.Sprintf("/in/%d/file", i)] = attrs{"kind": "text", "content": fmt.Sprint(i)}
		}
		return attrs{"mounts": mounts}
	}
	inputs := func(count int) attrs {
		pdh := c.store(t, map[string][]byte{"a.txt": []byte("A")})
		mounts := attrs{"/out": attrs{"kind": "tmp", "capacity": 1 << 20}}
		for i := range count {
			mounts[fmt.Sprintf("/in/%d", i)] = attrs{"kind": "collection", "portable_data_hash": pdh}
		}
		return attrs{"mounts": mounts}
	}
	many := func(short, max int) int {
		if long {
			return max
		}
		return short
	}
	files, binds, collections := many(500, 100_000), many(100, 4000), many(100, 4000)
	for _, a := range []abuse{
		{name: "fork bomb", script: "f() { f|f& }; touch ready; f 2>/dev/null; while :; do :; done", stopped: true,
			flags: []string{"-pids-limit=200"}, code: 137, stdout: "*"},
		{name: "fork bomb, which its parent leaves behind", script: "f() { f|f& }; f 2>/dev/null; read x </proc/uptime; exit 3",
			flags: []string{"-pids-limit=200"}, code: -1, stdout: "*"},
		{name: "zombies", script: "probe zombies 300; exit 4", code: 4, stdout: "left 300\n"},
		{name: "daemon", script: "(setsid sh -c 'trap \"\" TERM HUP INT; exec >/dev/null 2>&1 </dev/null; while :; do sleep 1; done' &); exit 5", code: 5},
		{name: "stops everything", script: "sleep 1000 & sleep 1000 & kill -STOP -1; kill -STOP $$; echo on; touch ready; while :; do sleep 1; done", stopped: true,
			code: 137, stdout: "on\n"},
		{name: "kills everything", script: "sleep 1000 & sleep 1000 & kill -9 -1; kill -9 $$; kill -9 1; wait; echo alive", stdout: "alive\n"},
		{name: "TERM is ignored", script: "trap '' TERM INT HUP; touch ready; sh -c 'while :; do sleep 1; done'", flags: []string{"-stop-grace=1s"}, stopped: true, code: 137},
		{name: "closed streams", script: "exec >&- 2>&- <&-; sleep 0.1; echo data >f; exit 6", code: 6, output: map[string]string{"f": "data\n"}},
		{name: "large environment", script: "echo ${#V0} ${#V99}", other: environment(100, 10_000), stdout: "10000 10000\n"},
		{name: "too large an environment", script: "true", other: environment(100, 30_000), fails: true, code: -1, log: "the arguments and the environment of a program"},
		{name: "too large a variable", script: "true", other: environment(1, 140_000), fails: true, code: -1, log: "the arguments and the environment of a program"},
		{name: fmt.Sprint(binds, " bind mounts"), script: fmt.Sprintf("cat /in/0/file /in/%d/file; ls /in | wc -l", binds-1), other: texts(binds), stdout: fmt.Sprintf("0%d%d\n", binds-1, binds)},
		{name: fmt.Sprint(collections, " collections"), script: fmt.Sprintf("cat /in/0/a.txt /in/%d/a.txt; ls /in | wc -l", collections-1), other: inputs(collections), stdout: fmt.Sprintf("AA%d\n", collections)},
		{name: "escapes", script: escapes},
		{name: "removes what is mounted", script: "rm -rf /out /in /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm /proc /sys /tmp 2>/dev/null; mv /out /elsewhere 2>/dev/null; rmdir /out 2>/dev/null; cat /in/0/file; echo data >/out/f",
			other: texts(1), stdout: "0", output: map[string]string{"f": "data\n"}},
		{name: "empties its root", script: "echo data >f; cp /bin/busybox /b; /b rm -rf /bin /etc /usr /var /tmp /lib /dev/null 2>&-; exit 7", code: 7, output: map[string]string{"f": "data\n"}},
		{name: "unreadable output", script: "mkdir -p d/d; echo secret >d/d/f; chmod 0 d/d/f d/d d; touch \"$(printf '\\377\\376')\" 'a b' \"$(printf 'new\\nline')\"; chmod 0 .",
			output: map[string]string{"d/d/f": "secret\n", "\xff\xfe": "", "a b": "", "new\nline": ""}},
		{name: "special files", script: "mkfifo p; mknod n c 1 3; mknod b b 7 0; echo data >f; ln -s /proc/self/fd l 2>/dev/null; rm l; cat n | wc -c", stdout: "0\n", output: map[string]string{"f": "data\n"}},
		{name: "sparse output", script: "dd if=/dev/zero of=f bs=1 count=0 seek=50G 2>/dev/null; ls -l f | tr -s ' ' | cut -d ' ' -f 5", stdout: "53687091200\n"},
		{name: fmt.Sprint(files, " files"), script: fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo $i >f$i; i=$((i+1)); done", files)},
		// Longer than PATH_MAX, and not longer than AppArmor lets a path be, 8 KiB.
		{name: "deep directories", script: "probe deep /tmp 800; probe deep /out 300", stdout: "800\n300\n"},
		{name: "too deep an output", script: "probe deep /out 800", stdout: "800\n", code: -1},
		{name: "shared memory", script: "dd if=/dev/zero of=/dev/shm/f bs=1M 2>/dev/null; wc -c </dev/shm/f; exit 8", code: 8, stdout: "67108864\n"},
		{name: "100,000 open files", script: "touch go; probe hoard files 100000; rm go hoarding", stdout: "*"},
		{name: "traced leader, init off", script: "exec probe traced leader", flags: []string{"-init=off"}, code: 7, stdout: "traced\n"},
		{name: "traced leader, init on", script: "exec probe traced leader", flags: []string{"-init=on"}, code: 7, stdout: "traced\n"},
		{name: "traced exec, init off", script: "exec probe traced exec", flags: []string{"-init=off"}, code: 7, stdout: "traced\n"},
		{name: "traced exec, init on", script: "exec probe traced exec", flags: []string{"-init=on"}, code: 7, stdout: "traced\n"},
		{name: "traced thread, init off", script: "exec probe traced thread", flags: []string{"-init=off"}, code: 7, stdout: "traced\n"},
		{name: "traced thread, init on", script: "exec probe traced thread", flags: []string{"-init=on"}, code: 7, stdout: "traced\n"},
		{name: "traced thread-signal, init off", script: "exec probe traced thread-signal", flags: []string{"-init=off"}, code: 7, stdout: "traced\n"},
		{name: "traced thread-exec, init off", script: "exec probe traced thread-exec", flags: []string{"-init=off"}, code: 7, stdout: "traced\n"},
		{name: "traced thread-exec, init on", script: "exec probe traced thread-exec", flags: []string{"-init=on"}, code: 7, stdout: "traced\n"},
		{name: "traced thread-signal, init on", script: "exec probe traced thread-signal", flags: []string{"-init=on"}, code: 7, stdout: "traced\n"},
	} {
		t.Run(a.name, func(t *testing.T) {
			uuid := c.submit(t, image, sh(a.script), a.other)
			p := c.supervise(t, n, uuid, a.flags...)
			if long && !a.stopped { // the disk may be slow
				select {
				case <-p.done:
				case <-time.After(10 * patience):
				}
			}
			if a.stopped {
				p.stderr.mustSay(t, "Waiting for container to finish")
				awaitFile(t, n, "out/ready")
				p.signal(t, syscall.SIGTERM)
			}
			var record arvados.Container
			switch {
			case a.fails:
				record = c.finished(t, n, p, uuid, 1, arvados.StateCancelled)
			case a.stopped:
				record = c.finished(t, n, p, uuid, 0, arvados.StateCancelled)
			default:
				record = c.finished(t, n, p, uuid, 0, arvados.StateComplete)
			}
			code := -1
			if record.ExitCode != nil {
				code = *record.ExitCode
			}
			if a.code >= 0 && code != a.code {
				t.Errorf("exit code %d, want %d", code, a.code)
			}
			logs := c.logs(t, record)
			if out := stamped(t, logs["stdout.txt"]); a.stdout != "*" && out != a.stdout {
				t.Errorf("stdout %q, want %q; stderr %s", out, a.stdout, tail(logs["stderr.txt"], 1000))
			}
			if !strings.Contains(logs["crunch-run.txt"], a.log) {
				t.Errorf("the log does not say %q:\n%s", a.log, tail(logs["crunch-run.txt"], 4000))
			}
			if a.output != nil {
				if got := c.files(t, record.Output); !maps.Equal(got, a.output) {
					t.Errorf("output %q, want %q", got, a.output)
				}
			}
		})
	}
	if out := stamped(t, c.log(t, c.runOne(t, n, image, sh("echo fine"), nil), "stdout.txt")); out != "fine\n" {
		t.Errorf("after all, a container says %q", out)
	}
}

// escapes tries to reach out of the container, and says what succeeded.
const escapes = `
try() { "$@" >/dev/null 2>&1 && echo "done: $*"; }
put() { (echo "$1" >"$2") 2>/dev/null && echo "written: $2"; }
for d in /sys/fs/cgroup/*; do try mkdir "$d/mine"; done
for f in $(find /sys/fs/cgroup -name 'cgroup.procs' -o -name release_agent -o -name notify_on_release -o -name 'memory.limit_in_bytes' -o -name memory.max -o -name pids.max -o -name devices.allow 2>/dev/null); do put 1 $f; done
mkdir /tmp/m
for type in proc sysfs tmpfs cgroup cgroup2 overlay devpts securityfs debugfs; do try mount -t $type none /tmp/m; done
for dir in / /proc/sys /sys /proc /out /dev /etc/hosts; do try mount -o remount,rw $dir; try mount -o remount,bind,rw $dir; try umount $dir; try umount -l $dir; done
try mount --bind / /tmp/m
try unshare -m true; try unshare -r true; try unshare -n true
try chroot /proc/1/root/.. ls /work
for f in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sysrq-trigger /proc/sys/kernel/hostname /proc/sys/fs/inotify/max_user_instances /proc/1/oom_score_adj /sys/kernel/uevent_helper /sys/power/state; do [ -e $f ] || continue; [ $f = /proc/1/oom_score_adj ] && { put -1000 $f; continue; }; put 1 $f; done
mknod /tmp/sda b 8 0; mknod /tmp/mem c 1 1; mknod /tmp/kmsg c 1 11; mknod /tmp/fuse c 10 229
for f in /tmp/sda /tmp/mem /tmp/kmsg /tmp/fuse; do try head -c 1 $f; put x $f; done
try dmesg; try swapoff -a; try hwclock -w; date -s 2001-01-01 >/dev/null 2>&1; [ $(date +%Y) -gt 2001 ] || echo "the clock is set"; try hostname evil; try insmod /bin/busybox; try losetup /dev/loop0 /bin/busybox
try nice -n -20 true
try ls /proc/kcore/x; 
for f in /proc/kcore /proc/timer_list /proc/keys /proc/latency_stats; do [ -z "$(head -c 1 $f 2>/dev/null)" ] || echo "read: $f"; done
true
`

// hoarders hold what a whole user, or the whole machine, has little of, and
// another container starts, runs and ends nevertheless.
func TestHoarders(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))
	for kind, limit := range map[string]int{
		"inotify": 4000, "files": 4000, "pipes": 4000, "locks": 4000,
		// Of usually 3072 (kernel.pty.max less pty.reserve): tests that run at the
		// same time need some.
		"terminals": 2000,
	} {
		t.Run(kind, func(t *testing.T) {
			uuid := c.submit(t, image, sh(fmt.Sprintf("probe hoard %s %d; rm -f hoarding go", kind, limit)), nil)
			hoarder := c.supervise(t, n, uuid)
			awaitFile(t, n, "out/hoarding")
			other := c.submit(t, image, sh("cat /in/a.txt; echo other; mkdir d; echo data >d/f"), in)
			p := c.supervise(t, n, other)
			if code := p.wait(t); code != 0 {
				t.Errorf("the other container: exit code %d", code)
			}
			record := c.container(t, other)
			if record.State != arvados.StateComplete {
				t.Errorf("the other container is %s", record.State)
			} else if out := stamped(t, c.log(t, record, "stdout.txt")); out != "Aother\n" {
				t.Errorf("the other container says %q", out)
			}
			release(t, n)
			record = c.finished(t, n, hoarder, uuid, 0, arvados.StateComplete)
			t.Log(stamped(t, c.log(t, record, "stdout.txt")))
		})
	}
}

// A container that fills the disk of its scratch space gets the error itself, and
// its supervisor does its work nevertheless.
func TestScratchFull(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	script := `mount -t tmpfs -o size=24m tmpfs "$TMPDIR" && exec "$@"`
	n.prefix = []string{"unshare", "-m", "sh", "-c", script, "sh"}
	for name, a := range map[string]struct {
		script string
		output map[string]string
	}{
		"output, removed":    {"dd if=/dev/zero of=/out/f bs=1M; echo $? $(($(wc -c </out/f)/2000000)); rm f; echo data >g", map[string]string{"g": "data\n"}},
		"output, kept":       {"dd if=/dev/zero of=/out/f bs=1M; echo $? $(($(wc -c </out/f)/2000000))", nil},
		"root, kept":         {"dd if=/dev/zero of=/f bs=1M; echo $? $(($(wc -c </f)/2000000)); (echo data >g) 2>/dev/null; rm -f g", map[string]string{}},
		"inodes, root, kept": {"dd if=/dev/zero of=/f bs=1M; echo $? $(($(wc -c </f)/2000000)); i=0; while mkdir /tmp/d$i 2>/dev/null; do i=$((i+1)); [ $i -gt 5000 ] && break; done", map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			record := c.runOne(t, n, image, sh(a.script), nil)
			logs := c.logs(t, record)
			if out := stamped(t, logs["stdout.txt"]); !strings.HasPrefix(out, "1 1") || !strings.Contains(logs["stderr.txt"], "No space left on device") {
				t.Errorf("says %q, %q", out, logs["stderr.txt"])
			}
			if a.output != nil {
				if got := c.files(t, record.Output); !maps.Equal(got, a.output) {
					t.Errorf("output %q, want %q", got, a.output)
				}
			}
		})
	}
}
