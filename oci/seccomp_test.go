//go:build seccomp

package oci_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/oci"
)

const seccompBuilt = true

// Docker's filter is on unless it is switched off.
func TestSeccomp(t *testing.T) {
	for _, off := range []bool{false, true} {
		got := runScript(t, "grep Seccomp: /proc/self/status", func(r *oci.Request) { r.NoSeccomp = off })
		if want := map[bool]string{false: "2", true: "0"}[off]; got != "Seccomp:\t"+want+"\n" {
			t.Errorf("off %v: %q", off, got)
		}
	}
}

// caller is a program that makes every system call, with arguments that none
// takes, and those that the filter looks at the arguments of; it prints what
// each returns.
const caller = `package main

import ("fmt"; "runtime"; "syscall")

func main() {
	runtime.LockOSThread()
	// These end, stop or double the process, or write the whole page cache.
	skip := map[uintptr]bool{15: true, 34: true, 56: true, 57: true, 58: true, 60: true, 162: true, 231: true, 335: true, 336: true}
	const none = ^uintptr(0)
	call := func(what string, nr uintptr, args ...uintptr) {
		a := [6]uintptr{none, none, none, none, none, none}
		copy(a[:], args)
		_, _, errno := syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		fmt.Println(what, nr, args, int(errno))
	}
	for nr := uintptr(0); nr < 600; nr++ {
		if !skip[nr] { call("call", nr) }
	}
	for _, nr := range []uintptr{0, 1, 2, 165, 512, 520, 547, 600} { call("x32", 0x40000000 + nr) }
	for domain := uintptr(0); domain < 50; domain++ { call("socket", 41, domain, 99, 99) }
	for _, p := range []uintptr{0, 8, 0x20000, 0x20008, 0xffffffff, 1} { call("personality", 135, p) }
	// CLONE_VM without CLONE_SIGHAND's companions is refused by the kernel, but
	// only after the filter.
	for _, f := range []uintptr{0x800, 0x800|0x10000000, 0x800|0x20000, 0x800|0x40000000} { call("clone", 56, f, 0, 0, 0, 0) }
	call("mount", 165, 0, 0, 0, 0, 0)
	call("unshare", 272, 0x10000000)
	call("keyctl", 250, 0)
}
`

// A filter that was compiled ahead of time does what libseccomp's does: for every
// system call, whoever the container's user is. Another version of libseccomp may
// know other system calls; to a filter, the unknown ones do not exist.
func TestFilterIsTheSame(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("filters are compiled ahead of time for amd64 only")
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	write(t, filepath.Join(dir, "main.go"), caller)
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "caller"), filepath.Join(dir, "main.go"))
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	made, err := os.ReadFile("internal/libct/filters/libseccomp")
	must(t, err)
	major, minor, micro := seccomp.Version()
	anyVersion := string(made) != fmt.Sprintf("%d.%d.%d\n", major, minor, micro)
	if anyVersion {
		t.Logf("the filters were made with libseccomp %s, this is %d.%d.%d: calls that only one of them knows are not compared", strings.TrimSpace(string(made)), major, minor, micro)
	}
	for _, user := range []string{"root", "alice"} {
		for _, noNewPrivileges := range []bool{false, true} {
			var results [2]string
			for i, ready := range []bool{true, false} {
				req := newRequest(t, newID(), "")
				req.Command = []string{"sh", "-c", "grep -E '^(Seccomp|NoNewPrivs|Cap)' /proc/self/status; exec /caller/caller"}
				req.Image.User, req.NoNewPrivileges = user, noNewPrivileges
				req.Mounts = []oci.Mount{{Source: dir, Target: "/caller", ReadOnly: true}}
				b, err := createEdited(t, req, func(spec *specs.Spec) error {
					if !ready { // a rule that is there already: nobody has compiled this before
						s := spec.Linux.Seccomp
						s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow})
					}
					return nil
				})
				must(t, err)
				state, err := os.ReadFile(filepath.Join(b.runtime.StateDir, b.id, "state.json"))
				must(t, err)
				if got := strings.Contains(string(state), "ready-made"); got != ready {
					t.Errorf("filter compiled ahead of time: %v, want %v; have the capabilities changed? See oci/internal/libct/filter_test.go", got, ready)
				}
				must(t, b.ctr.Start(t.Context()))
				if status := b.wait(); status.Code != 0 {
					t.Fatalf("exit %v, %.500q", status, b.stderr)
				}
				results[i] = b.stdout.String()
			}
			for _, want := range []string{"Seccomp:\t2\n", "Seccomp_filters:\t1\n", "mount 165 [0 0 0 0 0] 1\n", "unshare 272 [268435456] 1\n", "call 599 [] 38\n", "socket 41 [40 99 99] 1\n"} {
				if !strings.Contains(results[0], want) {
					t.Errorf("%s: lacks %q", user, want)
				}
			}
			if d := firstDifference(results[0], results[1], anyVersion); d != "" {
				t.Errorf("%s, no new privileges %v: %s", user, noNewPrivileges, d)
			}
		}
	}
}

// firstDifference compares what caller prints under two filters; "" if there is
// none. With anyVersion, calls may be unknown to one of the filters.
func firstDifference(a, b string, anyVersion bool) string {
	l, m := strings.Split(a, "\n"), strings.Split(b, "\n")
	if len(l) != len(m) {
		return fmt.Sprintf("%d and %d lines", len(l), len(m))
	}
	for i := range l {
		unknown := strings.HasSuffix(l[i], "] 38") || strings.HasSuffix(m[i], "] 38") // ENOSYS
		if l[i] != m[i] && !(anyVersion && unknown) {
			return "compiled ahead of time: " + l[i] + ", by libseccomp: " + m[i]
		}
	}
	return ""
}

func TestFirstDifference(t *testing.T) {
	for _, c := range []struct {
		a, b       string
		anyVersion bool
		same       bool
	}{
		{"call 1 [] 1\ncall 451 [] 38", "call 1 [] 1\ncall 451 [] 38", false, true},
		{"call 1 [] 1\ncall 451 [] 38", "call 1 [] 1\ncall 451 [] 22", false, false},
		{"call 1 [] 1\ncall 451 [] 38", "call 1 [] 1\ncall 451 [] 22", true, true},
		{"call 1 [] 1\ncall 451 [] 1", "call 1 [] 1\ncall 451 [] 22", true, false},
		{"call 1 [] 1", "call 1 [] 1\ncall 451 [] 38", true, false},
	} {
		if d := firstDifference(c.a, c.b, c.anyVersion); (d == "") != c.same {
			t.Errorf("%+v: %q", c, d)
		}
	}
}

// Who enters a container is filtered as well, though libcontainer has not loaded
// the container's own filter.
func TestFilterOfThoseWhoEnter(t *testing.T) {
	req := newRequest(t, newID(), "sleep 1000")
	b, err := create(t, req, nil)
	must(t, err)
	must(t, b.ctr.Start(t.Context()))
	s, err := b.ctr.Exec(t.Context(), sh("grep -E '^Seccomp(_filters)?:' /proc/self/status; mount -t tmpfs x /tmp 2>&1"))
	must(t, err)
	r := finish(t, s, "")
	if !strings.Contains(r.stdout, "Seccomp:\t2\nSeccomp_filters:\t1\n") || !strings.Contains(r.stdout, "ermission") && !strings.Contains(r.stdout, "not permitted") {
		t.Errorf("%q", r.stdout)
	}
}
