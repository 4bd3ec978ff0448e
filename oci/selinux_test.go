package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/oci"
)

// The labels of a container, of its process and of its files.
const seLabel, seMountLabel = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"

func needSELinux(t testing.TB) {
	t.Helper()
	if b, _ := os.ReadFile("/sys/fs/selinux/enforce"); string(b) != "1" {
		t.Skip("this kernel has no SELinux, or enforces nothing")
	}
}

func underSELinux(t testing.TB, r *oci.Request) {
	needSELinux(t)
	r.Confinement.SELinuxLabel, r.Confinement.SELinuxMountLabel = seLabel, seMountLabel
}

// The command, and those that enter the container, have the label; so has what is
// mounted for it. Of the host's files it may read, but not write, and see none with
// categories that are another's. The policy is that of vmtest.
func TestSELinuxConfines(t *testing.T) {
	needSELinux(t)
	const label, mountLabel = seLabel, seMountLabel
	const script = `tr -d '\0' </proc/self/attr/current; echo; grep -E ' / /dev(/shm)? ' /proc/self/mountinfo | grep -c 'context="` + mountLabel + `"'; for f in /work/own /dev/shm/new /work/hosts /work/others; do
		(echo x >$f) 2>/dev/null && echo "$f is written"; cat $f >/dev/null 2>&1 && echo "$f is read"; done`
	const want = label + "\n2\n/work/own is written\n/work/own is read\n/dev/shm/new is written\n/dev/shm/new is read\n/work/hosts is read\n"
	for name, edit := range map[string]func(*oci.Request){"plain": func(*oci.Request) {}, "init": withInit, "user namespace": mapped(t)} {
		t.Run(name, func(t *testing.T) {
			under := func(r *oci.Request) {
				r.Confinement.SELinuxLabel, r.Confinement.SELinuxMountLabel = label, mountLabel
				must(t, os.Symlink("busybox", filepath.Join(r.RootfsPath, "bin/tr")))
				for name, label := range map[string]string{"own": mountLabel, "hosts": "system_u:object_r:host_file_t:s0", "others": "system_u:object_r:container_file_t:s0:c1,c3"} {
					path := filepath.Join(r.RootfsPath, "work", name)
					write(t, path, "x")
					must(t, os.Chmod(path, 0o666))
					must(t, unix.Lsetxattr(path, "security.selinux", append([]byte(label), 0), 0))
				}
			}
			b := newBox(t, under, edit)
			if r := execIn(t, b.ctr, sh(script), ""); r.stdout != want {
				t.Errorf("exec: got %q, want %q; %s", r.stdout, want, r.stderr)
			}
			req := newRequest(t, newID(), script)
			under(&req)
			edit(&req)
			if b, _ := run(t, req, nil); b.stdout.String() != want {
				t.Errorf("got %q, want %q; %s", b.stdout, want, b.stderr)
			}
		})
	}
	if err := oci.CheckLabel(label); err != nil {
		t.Error(err)
	}
	if err := oci.CheckLabel("system_u:system_r:no_such_t:s0"); err == nil || !strings.Contains(err.Error(), "no_such_t") {
		t.Errorf("a label that the policy does not have: %v", err)
	}
}
