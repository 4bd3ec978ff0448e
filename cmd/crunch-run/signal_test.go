package main_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// startLocal starts crunch-run local with a shell script.
func startLocal(t testing.TB, n *node, script string, flags ...string) *process {
	t.Helper()
	image := filepath.Join(n.dir, "image.tar")
	if _, err := os.Stat(image); err != nil {
		writeFile(t, image, toolsImage(t).dockerSave())
	}
	args := append(append([]string{"local", "--image", image}, flags...), "--", "sh", "-c", script)
	return n.start(t, run{args: args})
}

// The first Ctrl-C stops the container and saves what there is.
func TestInterruptedOnce(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			n := newNode(t)
			output := filepath.Join(n.dir, "output")
			p := startLocal(t, n, "mkdir sub; echo partial > sub/part.txt; echo ready; sleep 1000; echo never", "--output", output)
			p.stdout.mustSay(t, "ready\n")
			p.signal(t, sig)
			if code := p.wait(t); code != 137 {
				t.Errorf("exit code %d, want 137", code)
			}
			n.mustBeClean(t)
			stderr := p.stderr.String()
			mustSayInOrder(t, stderr, "state            Cancelled\n", "exit code        137\n", "partial output   "+output+"\n", "log              ")
			if got := readFile(t, filepath.Join(output, "sub/part.txt")); got != "partial\n" {
				t.Errorf("partial output %q", got)
			}
			logs, err := filepath.Glob(filepath.Join(n.results(), "*/log/crunch-run.txt"))
			if err != nil || len(logs) != 1 {
				t.Fatalf("logs: %v %v", logs, err)
			}
			mustSayInOrder(t, readFile(t, logs[0]), "caught signal: "+sig.String()+"\n", "stopping container\n", "Container exited with status code 137 (signal 9, SIGKILL)\n", "Cancelled\n")
			if out := stamped(t, readFile(t, filepath.Join(filepath.Dir(logs[0]), "stdout.txt"))); out != "ready\n" {
				t.Errorf("stdout.txt %q", out)
			}
		})
	}
}

// The second Ctrl-C gives up at once, whatever is being saved, and still leaves
// nothing on the node.
func TestInterruptedTwice(t *testing.T) {
	t.Parallel()
	for name, saving := range map[string]string{"output to Keep": `copying "big"`, "output to disk": "crunch-run finished\n"} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := startLocal(t, n, "dd if=/dev/urandom of=big bs=1M count=300; echo ready; sleep 1000", "--verbose")
			p.stdout.mustSay(t, "ready\n")
			p.signal(t, syscall.SIGINT)
			p.stderr.mustSay(t, saving)
			p.signal(t, syscall.SIGINT)
			if code := p.wait(t); code != 130 {
				t.Errorf("exit code %d, want 130", code)
			}
			n.mustBeClean(t)
			if !strings.HasSuffix(p.stderr.String(), "crunch-run local: given up\n") {
				t.Errorf("the last words are not that it gave up:\n%s", tail(p.stderr.String(), 500))
			}
		})
	}
}

// Whenever the interrupt comes, the node is clean after it.
func TestInterruptedAtAnyTime(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for range 10 {
		delay := time.Duration(rand.IntN(600)) * time.Millisecond
		p := startLocal(t, n, "echo x > x; sleep 0.2")
		select {
		case <-p.done:
		case <-time.After(delay):
			_ = p.cmd.Process.Signal(syscall.SIGINT)
		}
		// 130: it was killed before it could have a handler; 0: it was faster.
		if code := p.wait(t); code != 125 && code != 137 && code != 130 && code != 0 {
			t.Errorf("interrupted after %v: exit code %d", delay, code)
		}
		n.mustBeClean(t)
		if err := os.RemoveAll(filepath.Join(n.store(), "images")); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("interrupted after %v:\n%s", delay, p.stderr.String())
		}
	}
}

// Dispatchers send TERM, INT or a scheduler's signal: the container is killed at
// once, unless the site gives it time.
func TestStopped(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	for name, tt := range map[string]struct {
		sig   syscall.Signal
		flags []string
		code  int
		out   string
	}{
		"TERM":       {syscall.SIGTERM, nil, 137, "ready\n"},
		"QUIT":       {syscall.SIGQUIT, nil, 137, "ready\n"},
		"with grace": {syscall.SIGTERM, []string{"-stop-grace=10s"}, 7, "ready\nasked\n"},
	} {
		t.Run(name, func(t *testing.T) {
			uuid := c.submit(t, image, sh("trap 'echo asked; exit 7' TERM; echo ready; echo part > part.txt; sleep 1000 & wait"), nil)
			p := c.supervise(t, n, uuid, tt.flags...)
			awaitFile(t, n, "out/part.txt")
			p.signal(t, tt.sig)
			record := c.finished(t, n, p, uuid, 0, arvados.StateCancelled)
			if record.ExitCode == nil || *record.ExitCode != tt.code || record.Output != "" {
				t.Errorf("exit code %v, want %d; output %q", record.ExitCode, tt.code, record.Output)
			}
			if out := stamped(t, c.log(t, record, "stdout.txt")); out != tt.out {
				t.Errorf("stdout %q, want %q", out, tt.out)
			}
			log := c.log(t, record, "crunch-run.txt")
			mustSayInOrder(t, log, "caught signal: "+tt.sig.String()+"\n", "stopping container\n", "Container exited with status code ", "copying \"part.txt\"", "Cancelled\n")
		})
	}
}

// USR1 saves the log now, for somebody who waits for it. USR2 does no harm.
func TestSaveLogNow(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("echo early words; "+untilTold), nil)
	p := c.supervise(t, n, uuid)
	p.stderr.mustSay(t, "Waiting for container to finish")
	insideContainer(t, n)
	p.signal(t, syscall.SIGUSR2)
	waitFor(t, "the words in the saved log", func() bool {
		p.signal(t, syscall.SIGUSR1)
		record := c.container(t, uuid)
		return record.Log != "" && strings.Contains(c.logs(t, record)["stdout.txt"], "early words")
	})
	release(t, n)
	c.finished(t, n, p, uuid, 0, arvados.StateComplete)
}
