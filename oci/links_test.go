package oci_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/oci"
)

// hostTree is a directory of the host in which nothing must change, and the check.
func hostTree(t *testing.T) (dir string, unchanged func()) {
	t.Helper()
	dir = t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	write(t, filepath.Join(dir, "file"), "the host's\n")
	write(t, filepath.Join(dir, "sub/file"), "the host's\n")
	return dir, func() {
		t.Helper()
		for path, want := range map[string]int{dir: 2, filepath.Join(dir, "sub"): 1} {
			if entries, err := os.ReadDir(path); err != nil || len(entries) != want {
				t.Errorf("%s of the host: %v, %v", path, entries, err)
			}
		}
		for _, path := range []string{"file", "sub/file"} {
			if text, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(text) != "the host's\n" {
				t.Errorf("%s of the host: %q, %v", path, text, err)
			}
		}
	}
}

// CVE-2019-16884, CVE-2021-30465, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881 and
// their like: an image in which what the runtime mounts on, masks or writes to is a
// link. Either the container cannot be made, or it is as if the link led to its own
// root; the kernel's tables stay protected, and nothing of the host changes.
func TestImagesWithLinksInTheWay(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	must(t, err)
	tos := []string{"HOST", "/proc", "HOST/file", "/proc/self/fd/3", "../../../../../../../../../../HOST", "/proc/sys/kernel", "HOST/sub", "/proc/1/root", "/tmp", "/dev"}
	for i, link := range []string{"/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/null", "/dev/mqueue", "/dev/ptmx", "/etc", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/data", "/work"} {
		for j, to := range tos {
			if os.Getenv("OCI_TEST_LONG") == "" && (i+j)%4 != 0 {
				continue // the rest is for make soak
			}
			t.Run(link+" to "+to, func(t *testing.T) {
				host, unchanged := hostTree(t)
				data := t.TempDir()
				req := newRequest(t, newID(), `
					grep ' /proc \| /proc$' /proc/self/mountinfo | grep -q ' - proc ' && [ -d /proc/1 ] || echo "no proc"
					for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/kernel/uevent_helper /sys/kernel/mm/ksm/run; do (echo evil >$f) 2>/dev/null && echo "$f is writable"; done
					cat /proc/kcore /proc/keys 2>/dev/null | head -c 1 | wc -c | grep -q '^0$' || echo unmasked
					for f in /etc/hosts /etc/resolv.conf /etc/hostname /work/x /data/x /dev/x; do (echo evil >$f) 2>/dev/null; done; true`)
				req.Cwd = "/work"
				req.Mounts = []oci.Mount{{Source: data, Target: "/data"}}
				path := filepath.Join(req.RootfsPath, link)
				must(t, os.RemoveAll(path))
				must(t, os.MkdirAll(filepath.Dir(path), 0o755))
				must(t, os.Symlink(strings.ReplaceAll(to, "HOST", host), path))
				if link == "/etc" {
					req.Image.Env = []string{"PATH=/bin"}
				}
				b, err := create(t, req, nil)
				if err == nil {
					if err = b.ctr.Start(t.Context()); err == nil {
						b.wait()
						if b.stdout.Len() > 0 {
							t.Errorf("%s", b.stdout)
						}
					}
				}
				unchanged()
				if now, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err != nil || string(now) != string(pattern) {
					t.Fatalf("core_pattern is now %q", now)
				}
			})
		}
	}
}

// CVE-2021-30465 and CVE-2024-45310: while the container is made, somebody who can
// write to one of its mounts exchanges a directory on the way to another mount's
// target for a link to the host.
func TestLinksThatAreSwapped(t *testing.T) {
	host, unchanged := hostTree(t)
	shared, data := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(shared, "a/b"), 0o755))
	must(t, os.Symlink(host, filepath.Join(shared, "link")))
	write(t, filepath.Join(data, "mine"), "")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(shared, "a"), unix.AT_FDCWD, filepath.Join(shared, "link"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	defer func() { close(stop); <-stopped; unchanged() }()
	made := 0
	for range 12 {
		req := newRequest(t, newID(), "cat /proc/self/mountinfo; ls /shared/a /shared/link")
		req.Mounts = []oci.Mount{{Source: shared, Target: "/shared"}, {Source: data, Target: "/shared/a/b/c"}, {Source: data, Target: "/shared/a/sub"}}
		b, err := create(t, req, nil)
		if err != nil {
			continue // it was noticed
		}
		if err := b.ctr.Start(t.Context()); err == nil {
			b.wait()
			made++
			for line := range strings.Lines(b.stdout.String()) {
				// Seen from the container, the host's directory is a path of its own root.
				if f := strings.Fields(line); len(f) > 6 && strings.HasPrefix(f[3], host) {
					t.Errorf("the host's directory is mounted: %s", line)
				}
			}
		}
		b.delete()
	}
	t.Logf("%d of 12 containers were made", made)
}

// A mount may not be put on the kernel's tables by way of a link either
// (CVE-2023-28642, CVE-2025-52881: what the runtime writes there would be written
// to a file of the image).
func TestMountsOnTheKernelThroughLinks(t *testing.T) {
	data := t.TempDir()
	for target, link := range map[string]string{
		"/link/sys": "/proc", "/work/link": "/proc/sys", "/work/link/attr": "/proc/self", "/work/link/kernel": "/proc/sys/../sys",
	} {
		req := newRequest(t, newID(), "grep /proc /proc/self/mountinfo | grep -v ' - proc \\| - tmpfs \\| - devtmpfs '; true")
		at := "/link"
		if strings.HasPrefix(target, "/work") {
			at = "/work/link"
		}
		must(t, os.Symlink(link, filepath.Join(req.RootfsPath, at)))
		req.Mounts = []oci.Mount{{Source: data, Target: target}}
		b, err := create(t, req, nil)
		if err != nil {
			continue
		}
		if err := b.ctr.Start(t.Context()); err != nil {
			t.Errorf("%s by %s to %s: %v", target, at, link, err)
		} else {
			t.Errorf("%s by %s to %s is mounted: exit %v, %s", target, at, link, b.wait(), b.stdout)
		}
	}
}

// CVE-2024-21626: a working directory or program that is a descriptor of the
// runtime would be a place on the host.
func TestDescriptorsAsWorkingDirectory(t *testing.T) {
	held, err := os.Open("/")
	must(t, err)
	defer held.Close()
	for _, dir := range []string{"/proc/self/fd", "/proc/1/fd", "/proc/thread-self/fd", "/work/link"} {
		for _, fd := range []string{"3", "4", "6", "7", "8", "9", "11"} {
			if os.Getenv("OCI_TEST_LONG") == "" && dir != "/proc/self/fd" && fd != "7" {
				continue
			}
			req := newRequest(t, newID(), "pwd; ls -d ../../../../../../../../../etc/shadow")
			req.Cwd = dir + "/" + fd
			must(t, os.Symlink("/proc/self/fd", filepath.Join(req.RootfsPath, "work/link")))
			b, err := create(t, req, nil)
			if err != nil {
				continue
			}
			if err := b.ctr.Start(t.Context()); err == nil {
				b.wait()
				if strings.Contains(b.stdout.String(), "shadow") {
					t.Errorf("in %s: %s", req.Cwd, b.stdout)
				}
			}
			b.delete()
		}
	}
}

// CVE-2019-5736, at the start: the command, or its interpreter, is the runtime's
// own program.
func TestCommandIsTheRuntimeItself(t *testing.T) {
	exe, err := os.Executable()
	must(t, err)
	before, err := os.Stat(exe)
	must(t, err)
	for name, command := range map[string][]string{"program": {"/proc/self/exe", "-test.run=NONE"}, "interpreter": {"/work/script"}, "link": {"/work/link", "-test.run=NONE"}} {
		req := newRequest(t, newID(), "")
		must(t, os.WriteFile(filepath.Join(req.RootfsPath, "work/script"), []byte("#!/proc/self/exe -test.run=NONE\n"), 0o755))
		must(t, os.Symlink("/proc/self/exe", filepath.Join(req.RootfsPath, "work/link")))
		req.Command = command
		b, err := create(t, req, nil)
		if err != nil {
			continue
		}
		if err := b.ctr.Start(context.Background()); err == nil {
			b.wait()
		} else if se := new(oci.StartError); !errors.As(err, &se) {
			t.Errorf("%s: %v", name, err)
		}
	}
	after, err := os.Stat(exe)
	must(t, err)
	if !os.SameFile(before, after) || before.ModTime() != after.ModTime() || before.Size() != after.Size() {
		t.Error("the runtime's program has changed")
	}
}
