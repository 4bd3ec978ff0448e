package oci_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"crunch-oci/cgroups"
	"crunch-oci/oci"
)

// supervisorEnv makes the test binary a supervisor of one container, for tests
// that kill it.
const supervisorEnv = "OCI_TEST_SUPERVISOR"

type supervision struct {
	StateDir, ID, Bundle string
	CreateOnly           bool
}

// superviseForTest says "created" and "started" on standard output and then
// waits for the container.
func superviseForTest() int {
	var s supervision
	err := json.Unmarshal([]byte(os.Getenv(supervisorEnv)), &s)
	if err == nil {
		err = s.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (s supervision) run() error {
	ctx := context.Background()
	r := &oci.Runtime{StateDir: s.StateDir}
	ctr, err := r.Create(ctx, s.ID, s.Bundle, oci.Stdio{})
	if err != nil {
		return err
	}
	fmt.Println("created")
	if !s.CreateOnly {
		if err := ctr.Start(ctx); err != nil {
			return err
		}
		fmt.Println("started")
	}
	if _, err := ctr.Wait(ctx); err != nil {
		return err
	}
	return ctr.Delete(ctx)
}

// start starts the test binary as a supervisor; its lines can be read from the
// pipe.
func (s supervision) start(t *testing.T) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	return s.startIn(t, "")
}

// startIn starts it in a cgroup.
func (s supervision) startIn(t *testing.T, cgroup string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	setting, err := json.Marshal(s)
	must(t, err)
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	if cgroup != "" {
		cmd = exec.Command("/bin/sh", "-c", "echo $$ >"+cgroup+"/cgroup.procs && exec "+exe)
	}
	cmd.Env = append(os.Environ(), supervisorEnv+"="+string(setting))
	cmd.Stderr = io.Discard
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, bufio.NewReader(out)
}

func newSupervision(t *testing.T, req oci.Request) supervision {
	t.Helper()
	spec, err := oci.NewSpec(req)
	must(t, err)
	s := supervision{StateDir: t.TempDir(), ID: filepath.Base(req.CgroupsPath), Bundle: t.TempDir()}
	must(t, oci.WriteBundle(s.Bundle, spec))
	return s
}

// processesOf lists the processes that belong to a container: those in its
// recorded cgroup, and inits of this test binary.
func processesOf(t *testing.T, s supervision) []string {
	t.Helper()
	var found []string
	record, err := os.ReadFile(filepath.Join(s.StateDir, s.ID, "cgroup.json"))
	if err == nil && len(record) > 0 {
		var cg cgroups.Cgroup
		must(t, json.Unmarshal(record, &cg))
		pids, err := cg.Procs()
		must(t, err)
		for _, pid := range pids {
			found = append(found, "in cgroup: "+strconv.Itoa(pid))
		}
	}
	init := append([]byte(os.Args[0]), "\x00init\x00"...)
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, name := range all {
		if b, err := os.ReadFile(name); err == nil && bytes.Equal(b, init) {
			found = append(found, name)
		}
	}
	return found
}

func (s supervision) waitForDeath(t *testing.T, what string) {
	t.Helper()
	waitFor(t, what, func() bool { return len(processesOf(t, s)) == 0 })
}

// cleanUp does what the next supervisor on the node does, after which the
// container can be made anew.
func (s supervision) cleanUp(t *testing.T) {
	t.Helper()
	r := &oci.Runtime{StateDir: s.StateDir}
	must(t, r.Cleanup(t.Context(), s.ID))
	if left, err := os.ReadDir(s.StateDir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	noCgroups(t)
	must(t, r.Cleanup(t.Context(), s.ID)) // nothing left is no error
}

// Kill -9 of the supervisor takes the container with it, whoever the
// container's user is and whether it has been started or not.
func TestContainerDiesWithItsCreator(t *testing.T) {
	for _, tc := range []struct {
		name       string
		user       string
		noNewPriv  bool
		createOnly bool
		script     string
		mapped     bool
		confine    func(testing.TB, *oci.Request)
	}{
		{name: "under AppArmor", script: "exec sleep 600", confine: underAppArmor},
		{name: "under AppArmor, as a user", user: "alice", script: "sleep 600 & sleep 600; true", confine: underAppArmor},
		{name: "under AppArmor, with init", script: "sleep 600", confine: func(t testing.TB, r *oci.Request) { underAppArmor(t, r); withInit(r) }},
		{name: "under SELinux", script: "exec sleep 600", confine: underSELinux},
		{name: "running in a user namespace", user: "alice", script: "sleep 600 & sleep 600; true", mapped: true},
		{name: "created only in a user namespace", createOnly: true, script: "true", mapped: true},
		{"running", "", false, false, "sleep 600 & sleep 600; true", false, nil},
		{"running as a user", "alice", false, false, "sleep 600 & sleep 600; true", false, nil},
		{"running with no_new_privs", "alice", true, false, "exec sleep 600", false, nil},
		{"running and deaf", "", false, false, `trap "" TERM INT HUP PIPE; while :; do sleep 1; done`, false, nil},
		{"created only", "", false, true, "true", false, nil},
		{"created only as a user", "alice", false, true, "true", false, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := newRequest(t, newID(), tc.script)
			req.User, req.NoNewPrivileges = tc.user, tc.noNewPriv
			if tc.mapped {
				mapped(t)(&req)
			}
			if tc.confine != nil {
				tc.confine(t, &req)
			}
			s := newSupervision(t, req)
			s.CreateOnly = tc.createOnly
			cmd, out := s.start(t)
			for _, want := range []string{"created\n", "started\n"}[:map[bool]int{true: 1, false: 2}[tc.createOnly]] {
				if line, err := out.ReadString('\n'); line != want {
					t.Fatalf("got %q, %v; want %q", line, err, want)
				}
			}
			if len(processesOf(t, s)) == 0 {
				t.Fatal("no container")
			}
			must(t, cmd.Process.Kill())
			s.waitForDeath(t, "the container to die with its creator")
			s.cleanUp(t)
		})
	}
}

// Kill -9 at any moment leaves nothing that the next clean-up does not find.
func TestCreatorKilledAtAnyMoment(t *testing.T) {
	req := newRequest(t, newID(), "sleep 600")
	req.User = "alice"
	spec, err := oci.NewSpec(req)
	must(t, err)
	s := supervision{StateDir: t.TempDir(), ID: filepath.Base(req.CgroupsPath), Bundle: t.TempDir()}
	must(t, oci.WriteBundle(s.Bundle, spec))
	// As long as a start takes, in steps, counted from the moment at which
	// the program has begun to work.
	begin := time.Now()
	cmd, out := s.start(t)
	_, err = out.ReadString('\n')
	must(t, err)
	_, err = out.ReadString('\n')
	must(t, err)
	whole := time.Since(begin)
	must(t, cmd.Process.Kill())
	s.waitForDeath(t, "the container to die")
	s.cleanUp(t)
	const steps = 25
	for i := range steps {
		cmd, _ := s.start(t)
		time.Sleep(whole * time.Duration(i) / steps) // the moment of the fault
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		s.waitForDeath(t, fmt.Sprintf("the container to die (killed after %d/%d of its start)", i, steps))
		s.cleanUp(t)
	}
}

// The end of the thread, or goroutine, that made a container is not the end of
// the container.
func TestContainerOutlivesTheCallingThread(t *testing.T) {
	req := newRequest(t, newID(), "cat")
	started := make(chan *box)
	stdin, stdinW := io.Pipe()
	go func() {
		runtime.LockOSThread() // ends with the goroutine
		b, err := create(t, req, stdin)
		if err == nil {
			err = b.ctr.Start(t.Context())
		}
		if err != nil {
			t.Error(err)
		}
		started <- b
	}()
	b := <-started
	time.Sleep(50 * time.Millisecond) // for a signal that must not come
	_, err := stdinW.Write([]byte("still here\n"))
	must(t, err)
	must(t, stdinW.Close())
	if status := b.wait(); status.Code != 0 || b.stdout.String() != "still here\n" {
		t.Errorf("exit %v, %q", status, b.stdout)
	}
}

// Cleanup also ends a container whose first process has got rid of its
// parent-death signal, which a program can do.
func TestCleanupKillsSurvivors(t *testing.T) {
	req := newRequest(t, newID(), "sleep 600")
	s := newSupervision(t, req)
	_, out := s.start(t)
	for range 2 {
		_, err := out.ReadString('\n')
		must(t, err)
	}
	// The creator lives: so does the container, as a survivor would.
	must(t, (&oci.Runtime{StateDir: s.StateDir}).Cleanup(t.Context(), s.ID))
	if p := processesOf(t, s); len(p) != 0 {
		t.Errorf("left: %v", p)
	}
	noCgroups(t)
}

// State that is damaged, because its writer was killed or for other reasons.
func TestCleanupOfDamagedState(t *testing.T) {
	r := &oci.Runtime{StateDir: t.TempDir()}
	dir := filepath.Join(r.StateDir, "x")
	for content, wantErr := range map[string]string{"": "", "{": "cgroup.json"} {
		must(t, os.MkdirAll(dir, 0o700))
		write(t, filepath.Join(dir, "cgroup.json"), content)
		err := r.Cleanup(t.Context(), "x")
		if (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%q: %v", content, err)
		}
	}
}
