package oci_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"crunch-oci/oci"
)

// CVE-2019-5736: a program in the container that is the runtime's own gets a copy
// of it that cannot be written to, or nothing.
func TestExecOfTheRuntimeItself(t *testing.T) {
	b := newBox(t)
	exe, err := os.Executable()
	must(t, err)
	before, err := os.Stat(exe)
	must(t, err)
	root := fmt.Sprintf("/proc/%d/root", b.ctr.PID())
	must(t, os.WriteFile(root+"/work/script", []byte("#!/proc/self/exe -test.run=NONE\n"), 0o755))
	// One waits for a process that is the runtime, and writes to its program.
	attack, err := b.ctr.Exec(t.Context(), sh(`echo ready; i=0; while [ $i -lt 300 ]; do i=$((i+1)); for p in /proc/[0-9]*; do case $(readlink $p/exe) in */busybox|"") ;; *) (echo evil >$p/exe) 2>/dev/null && echo written; esac; done; done`))
	must(t, err)
	expect(t, attack.Stdout(), "ready")
	for range 5 {
		for _, q := range []oci.ExecRequest{{Args: []string{"/proc/self/exe", "-test.run=NONE"}}, {Args: []string{"/work/script"}}} {
			if s, err := b.ctr.Exec(t.Context(), q); err == nil {
				finish(t, s, "")
			}
		}
	}
	_ = attack.Signal(15) // it may have given up
	if r := finish(t, attack, ""); strings.Contains(r.stdout, "written") {
		t.Error("the runtime's program was written to")
	}
	after, err := os.Stat(exe)
	must(t, err)
	if !os.SameFile(before, after) || before.ModTime() != after.ModTime() || before.Size() != after.Size() {
		t.Error("the runtime's program has changed")
	}
}

// CVE-2024-21626 and CVE-2016-9962: whatever a process finds that watches how
// others enter, it is no descriptor, directory, environment or memory of the host.
func TestExecLeaksNothingToWatchers(t *testing.T) {
	t.Setenv("SUPERVISOR_SECRET", "x")
	b := newBox(t)
	held, err := os.Open(t.TempDir()) // a directory of the host that this process holds
	must(t, err)
	defer held.Close()
	watch, err := b.ctr.Exec(t.Context(), sh(`echo ready; while :; do for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || { ls $p/fd/ 2>/dev/null | while read f; do case $(readlink $p/fd/$f) in ""|pipe:*|/dev/*|/proc*|/bin/*|/) ;; *) echo "FOUND $p $f $(readlink $p/fd/$f)"; esac; [ $f -gt 2 ] && ls $p/fd/$f/ >/dev/null 2>&1 && case $(readlink $p/exe) in */busybox) ;; *) echo "FOUND dir $p $f"; esac; done; grep -q SUPERVISOR $p/environ 2>/dev/null && echo "FOUND environ $p"; }; done; done`))
	must(t, err)
	expect(t, watch.Stdout(), "ready")
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 4 {
				execIn(t, b.ctr, sh("true"), "")
			}
		})
	}
	wg.Wait()
	must(t, watch.Signal(15))
	if r := finish(t, watch, ""); strings.Contains(r.stdout, "FOUND") {
		t.Error(r.stdout)
	}
	// As working directory or program, descriptors lead nowhere.
	for fd := range 10 {
		for _, name := range []string{"/proc/self/fd/%d", "/proc/self/fd/%d/../../../bin/sh"} {
			if fd < 3 && strings.Contains(name, "sh") {
				continue
			}
			s, err := b.ctr.Exec(t.Context(), oci.ExecRequest{Args: []string{fmt.Sprintf(name, fd)}})
			if err == nil {
				r := finish(t, s, "ls /etc/shadow")
				t.Errorf("descriptor %d was executed: %+v", fd, r)
				continue
			}
			var refused *oci.ExecError
			if !errors.As(err, &refused) {
				t.Errorf("descriptor %d: %v", fd, err)
			}
		}
	}
	b2 := newBox(t, func(q *oci.Request) { q.Cwd = "/work" })
	must(t, os.RemoveAll(fmt.Sprintf("/proc/%d/root/work", b2.ctr.PID())))
	must(t, os.Symlink("/proc/self/fd/7", filepath.Join(fmt.Sprintf("/proc/%d/root", b2.ctr.PID()), "work")))
	s, err := b2.ctr.Exec(t.Context(), sh("pwd; ls -d ../../../../../etc/shadow"))
	if err == nil {
		t.Errorf("%+v", finish(t, s, ""))
	} else if want := `working directory "/work" cannot be used`; !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// A container's limits hold for what enters it.
func TestExecIsLimited(t *testing.T) {
	b := newBox(t, func(q *oci.Request) {
		q.Limits.PIDs = 20
	})
	r := execIn(t, b.ctr, sh(`mknod /tmp/sda b 8 0 && head -c 1 /tmp/sda >/dev/null 2>&1 && echo device; head -c 1 /dev/null && echo null`), "")
	if r.stdout != "null\n" {
		t.Errorf("devices: %+v", r)
	}
	r = execIn(t, b.ctr, sh("i=0; while [ $i -lt 40 ]; do sleep 5 >/dev/null 2>&1 & i=$((i+1)); done; echo unlimited"), "")
	if strings.Contains(r.stdout, "unlimited") {
		t.Errorf("processes: %+v", r)
	}
}
