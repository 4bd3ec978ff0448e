package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/arvados"
)

// The flags that no other test of the program needs, and a cluster that is named
// in settings.conf only.
func TestOtherFlags(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	home, profile := filepath.Join(n.dir, "home"), filepath.Join(n.dir, "profile")
	if err := os.MkdirAll(filepath.Join(home, ".config/arvados"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(home, ".config/arvados/settings.conf"), []byte(
		"# a comment\n ARVADOS_API_HOST = "+c.env["ARVADOS_API_HOST"]+" \nARVADOS_API_TOKEN="+c.env["ARVADOS_DISPATCHER_TOKEN"]+"\n"))
	// More memory than it has asked for, which only the flag lets it have.
	uuid := c.submit(t, image, sh("probe eat 100"), attrs{"runtime_constraints": attrs{"vcpus": 1, "ram": 64 << 20}})
	p := n.start(t, run{
		args: []string{"--sleep", "1ms", "-memprofile=" + profile, "-enable-memory-limit=F", "-ca-certs", c.env["SSL_CERT_FILE"],
			"-cgroup-root=/nonexistent", "-cgroup-parent", "x", "-check-containerd=1s", "-runtime-engine", "crunch-run", uuid},
		env: []string{"HOME=" + home},
	})
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "ate 100\n" {
		t.Errorf("stdout %q", out)
	}
	if text := readFile(t, profile); !strings.HasPrefix(text, "\x1f\x8b") {
		t.Errorf("the memory profile begins %.20q", text)
	}

	// A signal ends the waiting, and nothing is said about the container.
	uuid = c.submit(t, image, sh("echo never"), nil)
	p = c.supervise(t, n, uuid, "-sleep=1h")
	p.stderr.mustSay(t, " started\n")
	p.signal(t, syscall.SIGTERM)
	p.wait(t)
	if state := c.container(t, uuid).State; state != arvados.StateLocked {
		t.Errorf("stopped while it slept: state %s", state)
	}
	n.mustBeClean(t)
}
