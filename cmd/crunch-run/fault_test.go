package main_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// An image is run as Docker would run it: its ENTRYPOINT is kept, its USER and
// WORKDIR count, and the files are there for whom it runs as.
func TestImageConfiguration(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	m := toolsImage(t)
	m.layers = append(m.layers[:2:2], newLayer().
		file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nworker:x:1234:555:,,,:/home/worker:/bin/sh\n").
		file("etc/group", "root:x:0:\nworkers:x:555:\nextra:x:777:other,worker\n").
		dir("srv").add(tar.Header{Name: "srv/work/", Typeflag: tar.TypeDir, Mode: 0o777}, "").bytes())
	m.config = map[string]any{
		"Env": []string{"PATH=/bin", "A=image", "B=image"}, "User": "worker", "WorkingDir": "/srv/work",
		"Entrypoint": []string{"/bin/busybox", "env", "ENTRYPOINT=kept"}, "Cmd": []string{"sh", "-c", "echo the image's command"},
	}
	image := c.storeImage(t, m.id(), m.dockerSave())
	script := `id -u; id -g; id -G; pwd; echo $HOME $A $B $ENTRYPOINT; mkdir -p /out/made/by && echo mine > /out/made/by/worker.txt`
	const user = "1234\n555\n555 777\n"
	for name, tt := range map[string]struct{ cwd, want string }{
		"a dot":       {".", user + "/srv/work\n/home/worker image record kept\n"},
		"relative":    {"sub", user + "/srv/work/sub\n/home/worker image record kept\n"},
		"absolute":    {"/tmp", user + "/tmp\n/home/worker image record kept\n"},
		"the output":  {"/out", user + "/out\n/home/worker image record kept\n"},
		"not present": {"/new/dir", user + "/new/dir\n/home/worker image record kept\n"},
	} {
		t.Run(name, func(t *testing.T) {
			record := c.runOne(t, n, image, sh(script), attrs{"cwd": tt.cwd, "environment": attrs{"B": "record"}})
			if out := stamped(t, c.log(t, record, "stdout.txt")); out != tt.want {
				t.Errorf("the container says %q, want %q; stderr %q", out, tt.want, c.log(t, record, "stderr.txt"))
			}
			if got := c.files(t, record.Output); !maps.Equal(got, map[string]string{"made/by/worker.txt": "mine\n"}) {
				t.Errorf("output %q", got)
			}
		})
	}
}

// A node without room for the image is broken: the container goes back to the
// queue, and the dispatcher is told.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	// In a mount namespace of its own the store is on a very small disk.
	run := func(t *testing.T, uuid string, flags ...string) (stderr string) {
		script := `mount -t tmpfs -o size=3m tmpfs "$CRUNCH_RUN_STORE_DIR" && exec "$0" "$@"`
		cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", script, program}, append(flags, uuid)...)...)
		cmd.Env = append(append(cleanEnv(), n.settings()...), c.supervisorEnv()...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Fatalf("%v:\n%s", err, out.String())
		}
		if record := c.container(t, uuid); record.State != arvados.StateQueued {
			t.Errorf("state %s, want Queued", record.State)
		} else if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, "no space left on device") {
			t.Errorf("the log does not say why:\n%s", log)
		}
		return out.String()
	}
	marker := filepath.Join(n.locks(), "crunch-run-broken")
	t.Run("marker", func(t *testing.T) {
		run(t, c.submit(t, image, sh("echo never"), nil))
		fi, err := os.Stat(marker)
		if err != nil || fi.Mode() != 0o700 {
			t.Fatalf("marker: %v %v", fi, err)
		}
		if err := os.Remove(marker); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("hook", func(t *testing.T) {
		hook := filepath.Join(n.dir, "hook")
		if err := os.WriteFile(hook, []byte("#!/bin/sh\necho told the administrator\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		stderr := run(t, c.submit(t, image, sh("echo never"), nil), "-broken-node-hook="+hook)
		mustSayInOrder(t, stderr, "Error suggests node is unable to run containers: ", fmt.Sprintf("Running broken node hook %q", hook), "told the administrator")
		if _, err := os.Stat(marker); err == nil {
			t.Error("there is a hook, and the marker was made nevertheless")
		}
	})
}

// A block that Keep has lost is an I/O error for the program that reads it, and
// the user is told where to look.
func TestLostBlock(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	pdh := c.store(t, map[string][]byte{"lost.bin": bytes.Repeat([]byte("lost"), 1<<20), "sub/empty": nil})
	text := c.manifest(t, pdh)
	block, _, _ := strings.Cut(strings.Fields(text)[1], "+")
	found, err := filepath.Glob(filepath.Join(n.dir, "cluster/keep/*", block))
	if err != nil || len(found) != 1 {
		t.Fatalf("block %s lies at %v, %v", block, found, err)
	}
	if err := os.Remove(found[0]); err != nil {
		t.Fatal(err)
	}
	record := c.runOne(t, n, image, sh("cat /in/lost.bin | wc -c; cat /in/sub/empty; ls /in"), withInput(pdh))
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "0\nlost.bin\nsub\n" {
		t.Errorf("stdout %q", out)
	}
	if stderr := stamped(t, c.log(t, record, "stderr.txt")); !strings.Contains(stderr, "Input/output error") {
		t.Errorf("stderr %q", stderr)
	}
	warning, _ := record.RuntimeStatus["warning"].(string)
	detail, _ := record.RuntimeStatus["warningDetail"].(string)
	if !strings.HasPrefix(warning, "arv-mount: ") || !strings.Contains(detail, block) {
		t.Errorf("runtime status %v", record.RuntimeStatus)
	}
	if log := c.log(t, record, "arv-mount.txt"); !strings.Contains(log, block) {
		t.Errorf("arv-mount.txt does not name the block:\n%s", log)
	}
}

// The whole cluster is killed while a container runs, and comes back. Nothing is
// lost, the container least of all.
func TestClusterRestarts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A\n")}))
	uuid := c.submit(t, c.storeTools(t), sh("echo before; "+untilTold+"echo after; cat /in/a.txt; echo data > data.txt"), in)
	blocks := newKeepProxy(t, c)
	p := n.start(t, run{args: []string{uuid}, env: append(c.supervisorEnv(), "ARVADOS_KEEP_SERVICES="+blocks.URL)})
	p.stderr.mustSay(t, "Waiting for container to finish")
	insideContainer(t, n)

	c.process.signal(t, syscall.SIGKILL)
	c.process.wait(t)
	release(t, n)
	time.Sleep(2 * time.Second) // longer than the first attempts of all clients
	c.restart(t, n)
	blocks.lead(t, c)
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "before\nafter\nA\n" {
		t.Errorf("stdout %q", out)
	}
	if got := c.files(t, record.Output); !maps.Equal(got, map[string]string{"data.txt": "data\n"}) {
		t.Errorf("output %q", got)
	}
}

// On a terminal long steps have progress bars, which leave a line each.
func TestTerminal(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	image := filepath.Join(n.dir, "image.tar")
	writeFile(t, image, toolsImage(t).dockerSave())
	cmd := exec.Command("script", "-qec", program+" local --image "+image+" -- sh -c 'echo hello; exit 3'", "/dev/null")
	cmd.Env = append(append(cleanEnv(), n.settings()...), "TERM=xterm", "COLUMNS=80")
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != 3 {
		t.Fatalf("%v:\n%s", err, out)
	}
	text := strings.ReplaceAll(string(out), "\r\n", "\n")
	mustSayInOrder(t, text, "storing image", "\r", "storing image: ", " in ", "unpacking image: ", "hello\n", "exit code        3\n")
	if !strings.Contains(text, "%") {
		t.Errorf("no bar in %q", text)
	}
}
