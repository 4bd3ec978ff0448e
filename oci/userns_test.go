package oci_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/idmap"
	"crunch-oci/oci"
)

var testIDs = idmap.Range{First: 200000, Count: 65536}

// mapped puts a request into a user namespace. Its root directory, which no image
// shares, is given to the namespace's ids.
func mapped(t testing.TB) func(*oci.Request) {
	return func(r *oci.Request) {
		t.Helper()
		r.Confinement.IDs = testIDs
		must(t, testIDs.Give(r.RootfsPath))
		openWay(t, r.RootfsPath)
	}
}

// openWay lets everybody pass to dir, as the supervisor's directories do.
func openWay(t testing.TB, dir string) {
	t.Helper()
	for d := filepath.Dir(dir); d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o711))
	}
}

func TestUserNamespace(t *testing.T) {
	out := t.TempDir()
	must(t, os.Chmod(out, 0o2777))
	must(t, testIDs.Give(out))
	got := runScript(t, `
		id -u; cat /proc/self/uid_map | tr -s ' '; cat /proc/self/gid_map | tr -s ' '
		stat -c %u:%g /bin/busybox /out /etc/hosts /dev/null
		touch /out/root /new; mkdir /dir; ip addr show lo | grep -c 'inet 127'
		grep CapEff /proc/self/status
		mknod /tmp/disk b 8 0 2>/dev/null && echo device
		for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do (echo x > $f) 2>/dev/null && echo "$f is writable"; done
		chown 1000 /out/root && stat -c %u /out/root
		echo out > /dev/stdout; echo err > /dev/stderr; cat /proc/sys/net/ipv4/ping_group_range`,
		mapped(t), func(r *oci.Request) {
			r.Mounts = []oci.Mount{{Source: out, Target: "/out"}}
			must(t, os.Symlink("busybox", filepath.Join(r.RootfsPath, "bin/tr")))
			must(t, os.Symlink("busybox", filepath.Join(r.RootfsPath, "bin/mkdir")))
			must(t, os.Symlink("busybox", filepath.Join(r.RootfsPath, "bin/chown")))
		})
	want := "0\n 0 200000 65536\n 0 200000 65536\n0:0\n0:0\n0:0\n65534:65534\n1\nCapEff:\t00000000a80425fb\n1000\nout\n0\t65535\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(out, "root"), &st))
	if st.Uid != 201000 || st.Gid != 200000 {
		t.Errorf("on the host the file belongs to %d:%d", st.Uid, st.Gid)
	}
}

// Other users of the container are others on the host, too, and own their streams.
func TestUserNamespaceUsers(t *testing.T) {
	req := newRequest(t, newID(), "id -u; id -G; echo err >/dev/stderr; echo out >/dev/stdout; cat /dev/stdin; sleep 600")
	mapped(t)(&req)
	req.Image.User = "alice"
	b, err := create(t, req, strings.NewReader("in\n"))
	must(t, err)
	must(t, b.ctr.Start(t.Context()))
	waitFor(t, "the command", func() bool { return strings.Contains(procStatus(b.ctr.PID()), "sleep 600") })
	var st unix.Stat_t
	must(t, unix.Stat(fmt.Sprintf("/proc/%d", b.ctr.PID()), &st))
	if st.Uid != 201000 {
		t.Errorf("the process is %d on the host", st.Uid)
	}
	r := execIn(t, b.ctr, sh("id -u; echo to stderr >/dev/stderr; cat /dev/stdin; stat -c %u /proc/1"), "typed")
	if r.stdout != "0\ntyped1000\n" || r.stderr != "to stderr\n" {
		t.Errorf("exec: %+v", r)
	}
	must(t, b.ctr.Kill(t.Context()))
	b.wait()
	if b.stdout.String() != "1000\n1000 44 50\nout\nin\n" || b.stderr.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", b.stdout, b.stderr)
	}
}

func procStatus(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return string(b)
}

func TestUserNamespaceRefuses(t *testing.T) {
	req := newRequest(t, newID(), "true")
	req.Confinement.IDs, req.Network, req.Hostname = testIDs, oci.NetworkHost, ""
	if _, err := oci.NewSpec(req); !errors.Is(err, oci.ErrUserNamespace) {
		t.Errorf("host network: %v", err)
	}
	for _, user := range []string{"65536", "1:65536", "70000:0"} {
		req := newRequest(t, newID(), "true")
		req.Confinement.IDs, req.User = testIDs, user
		if _, err := oci.NewSpec(req); !errors.Is(err, oci.ErrRequest) || !strings.Contains(err.Error(), "is not among the 65536") {
			t.Errorf("user %s: %v", user, err)
		}
	}
}

// What the host's root owns in a tree becomes the container's root's, with the
// same mode; what is somebody else's, behind a link or on another file system
// stays as it is.
func TestGiveTree(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "set"), 0o755))
	must(t, os.Chmod(filepath.Join(dir, "set"), fs.ModeSetgid|0o2777))
	write(t, filepath.Join(dir, "theirs"), "")
	must(t, os.Chown(filepath.Join(dir, "theirs"), 7, 0))
	write(t, filepath.Join(other, "file"), "")
	must(t, os.Symlink(filepath.Join(other, "file"), filepath.Join(dir, "link")))
	must(t, os.Mkdir(filepath.Join(dir, "mount"), 0o755))
	must(t, unix.Mount("tmpfs", filepath.Join(dir, "mount"), "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(filepath.Join(dir, "mount"), 0)) }()
	must(t, testIDs.Give(dir))
	for name, want := range map[string]string{
		dir: "200000:200000", dir + "/set": "200000:200000", dir + "/theirs": "7:200000", dir + "/link": "200000:200000",
		dir + "/mount": "0:0", other + "/file": "0:0",
	} {
		var st unix.Stat_t
		must(t, unix.Lstat(name, &st))
		if got := fmt.Sprintf("%d:%d", st.Uid, st.Gid); got != want {
			t.Errorf("%s belongs to %s, want %s", name, got, want)
		}
		if name == dir+"/set" && st.Mode&0o7777 != 0o2777 {
			t.Errorf("mode %o", st.Mode)
		}
	}
}
