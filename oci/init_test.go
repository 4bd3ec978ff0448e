package oci_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/oci"
)

func withInit(r *oci.Request) { r.Confinement.Init = true }

// With an init the command is its child, with the descriptors, signals and
// environment that it would have without.
func TestInit(t *testing.T) {
	got := runScript(t, `[ $$ != 1 ] && echo $PPID; tr '\0' ' ' </proc/1/cmdline; echo; cat /proc/1/comm; ls /proc/self/fd /proc/1/fd; grep -E 'Sig(Blk|Ign)|Cap(Eff|Bnd)|Seccomp:' /proc/self/status >/tmp/here
		grep -E 'Cap(Eff|Bnd)|Seccomp:' /proc/1/status >/tmp/init; grep -E 'Cap(Eff|Bnd)|Seccomp:' /tmp/here >/tmp/cmp; [ "$(cat /tmp/init)" = "$(cat /tmp/cmp)" ] && grep Blk /tmp/here
		(echo x >/proc/1/exe) 2>/dev/null && echo "init can be written to"; env | sort | grep -v SHLVL`,
		withInit, func(r *oci.Request) { must(t, os.Symlink("busybox", filepath.Join(r.RootfsPath, "bin/tr"))) })
	if want := "1\ncrunch-init         sh -c "; !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if want := "crunch-init\n/proc/1/fd:\n0\n1\n2\n\n/proc/self/fd:\n0\n1\n2\n3\nSigBlk:\t0000000000000000\nHOME=/root\nHOSTNAME=box\nPATH=/bin\nPWD=/\n"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Whatever ends whose parent has not waited for it, and could not any more, is
// reaped: no zombies are left.
func TestInitReaps(t *testing.T) {
	script := `i=0; while [ $i -lt 50 ]; do (sh -c true &); i=$((i+1)); done
		i=0; while cat /proc/[0-9]*/stat 2>/dev/null | grep -q ' Z '; do i=$((i+1)); [ $i -lt 3000 ] || exit 9; sleep 0.01; done`
	runScript(t, script, withInit)
}

// Exit statuses are the command's, also when a signal ends it, or not: as the
// first process it would not end by TERM.
func TestInitEndsAsTheCommand(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -9 $$": 137, "kill -TERM $$": 143, "sleep 600 & exit 3": 3} {
		req := newRequest(t, newID(), script)
		withInit(&req)
		if _, status := run(t, req, nil); status.Code != want {
			t.Errorf("%s: %v, want %d", script, status, want)
		}
	}
}

func TestInitPassesSignalsOn(t *testing.T) {
	for _, tc := range []struct {
		script string
		want   int
	}{
		{`trap "exit 44" TERM; echo ready; while :; do sleep 0.02; done`, 44},
		{`echo ready; exec sleep 600`, 143}, // no handler: ignored by a first process
	} {
		req := newRequest(t, newID(), tc.script)
		withInit(&req)
		b, err := create(t, req, nil)
		must(t, err)
		must(t, b.ctr.Start(t.Context()))
		// Started means executed; the handler is there soon after.
		waitFor(t, "sleep", func() bool {
			pids, err := b.ctr.Cgroup().Procs()
			must(t, err)
			for _, pid := range pids {
				if strings.HasPrefix(procStatus(pid), "sleep") {
					return true
				}
			}
			return false
		})
		must(t, b.ctr.Signal(syscall.SIGTERM))
		if status := b.wait(); status.Code != tc.want {
			t.Errorf("%q: %v, want %d", tc.script, status, tc.want)
		}
	}
}

// What cannot be executed is told as without an init.
func TestInitStartErrors(t *testing.T) {
	for _, tc := range []struct {
		command, content string
		mode             os.FileMode
		code             int
		reason           string
		advice           bool
	}{
		{"no-such-command", "", 0, 127, `exec: "no-such-command": executable file not found in $PATH`, true},
		{"/work/missing", "", 0, 127, "exec /work/missing: no such file or directory", true},
		{"/work/cmd", "text", 0o644, 126, "permission denied", false},
		{"/work", "", 0, 126, "exec /work: is a directory", false},
		{"/work/cmd", "#!/no/such/sh\n", 0o755, 127, "no such file or directory", true},
		{"cmd", "#!/bin/sh\r\n", 0o755, 127, "no such file or directory", true},
		{"/work/cmd", "\x00\x01\x02\x03", 0o755, 126, "nor a script that begins with #!)", false},
		{"/work/cmd/x", "x", 0o755, 126, "not a directory", false},
	} {
		req := newRequest(t, newID(), "")
		withInit(&req)
		req.Command, req.Image.Env = []string{tc.command}, []string{"PATH=/nowhere:relative:/work"}
		if tc.content != "" {
			file := filepath.Join(req.RootfsPath, "work/cmd")
			must(t, os.WriteFile(file, []byte(tc.content), 0o600))
			must(t, os.Chmod(file, tc.mode))
		}
		b, err := create(t, req, nil)
		must(t, err)
		var se *oci.StartError
		if err := b.ctr.Start(t.Context()); !errors.As(err, &se) {
			t.Errorf("%s: %v, want a StartError", tc.command, err)
			continue
		}
		if se.ExitCode() != tc.code || !strings.HasSuffix(se.Error(), tc.reason) || (se.Advice() != "") != tc.advice {
			t.Errorf("%s: code %d, %q, advice %q", tc.command, se.ExitCode(), se, se.Advice())
		}
	}
}

// All at once: for another user, in a user namespace, without new privileges.
func TestInitForUsersInNamespaces(t *testing.T) {
	got := runScript(t, "id -u; echo $PPID; echo err >/dev/stderr", withInit, mapped(t), func(r *oci.Request) {
		r.Image.User, r.NoNewPrivileges = "alice", true
	})
	if got != "1000\n1\n" {
		t.Errorf("got %q", got)
	}
}
