package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/arvados"
)

// On a node with AppArmor containers are under Docker's profile without any setting.
// A profile that is not there stops the container before it begins, a node without
// the programs for it is told of; "check" says all of this first.
func TestAppArmor(t *testing.T) {
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(on), "Y") {
		if inMachine {
			t.Fatal("AppArmor is off in the machine that has it")
		}
		t.Skip("this kernel has no AppArmor; Debian's in make test-vm has it")
	}
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	profile := func(want string) {
		t.Helper()
		uuid := c.submit(t, image, sh("cat /proc/self/attr/current"), nil)
		record := c.finished(t, n, c.supervise(t, n, uuid), uuid, 0, arvados.StateComplete)
		if got := stamped(t, c.log(t, record, "stdout.txt")); got != want+"\n" {
			t.Errorf("the container was %q instead of %q: %s", got, want, c.log(t, record, "crunch-run.txt"))
		}
	}
	profile("crunch-run-default (enforce)")
	if res := n.run(t, "check", "--timeout=2m"); !strings.Contains(res.stdout, "AppArmor profile crunch-run-default") {
		t.Error(res.stdout, res.stderr)
	}

	was := n.env
	n.env = append(was, "CRUNCH_RUN_APPARMOR_PROFILE=lab")
	uuid := c.submit(t, image, sh("true"), nil)
	p := c.supervise(t, n, uuid)
	record := c.finished(t, n, p, uuid, 1, arvados.StateLocked)
	const advice = `setting apparmor-profile: AppArmor profile "lab" is not loaded: load it with apparmor_parser, at every boot`
	if text := p.stderr.String(); !strings.Contains(text, advice) {
		t.Errorf("state %s: %s", record.State, text)
	}
	if res := n.run(t, "check", "--timeout=2m"); res.code == 0 || !strings.Contains(res.stdout, `"lab" is not loaded`) {
		t.Errorf("exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
	n.env = append(was, "CRUNCH_RUN_APPARMOR_PROFILE=unconfined")
	profile("unconfined")

	// Nobody has loaded the profile, and nobody can.
	remove := exec.Command("apparmor_parser", "-R")
	remove.Stdin = strings.NewReader("profile crunch-run-default {}")
	if out, err := remove.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	bin := filepath.Join(n.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	n.env = append(was, "PATH="+bin)
	uuid = c.submit(t, image, sh("cat /proc/self/attr/current"), nil)
	record = c.finished(t, n, c.supervise(t, n, uuid), uuid, 0, arvados.StateComplete)
	log := c.log(t, record, "crunch-run.txt")
	if said := strings.Count(log, "warning: containers run without AppArmor profile: "); said != 1 || !strings.Contains(log, "install apparmor_parser") {
		t.Errorf("said %d times: %s", said, log)
	}
	if res := n.run(t, "check", "--timeout=2m"); !strings.Contains(res.stdout, "install apparmor_parser (package apparmor)") {
		t.Error(res.stdout, res.stderr)
	}
	n.env = was
	profile("crunch-run-default (enforce)")
}
