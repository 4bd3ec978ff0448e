package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/internal/forkthread"
)

// siteFile writes the node's settings into a site file, and returns its path.
func (n *node) siteFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(n.dir, "config.yml")
	writeFile(t, path, fmt.Appendf(nil, "store-dir: %s\nruntime-dir: %s\nlock-dir: %s\nlocal-dir: %s\ncgroup-base: %s\n",
		n.store(), n.runtime(), n.locks(), n.results(), n.cgroup))
	return path
}

// exec starts a command with exactly this environment, as the leader of its own
// process group, with one file for stdout and stderr.
func (n *node) exec(t testing.TB, env []string, dir string, words ...string) *process {
	t.Helper()
	n.killAtEnd(t)
	p := &process{done: make(chan struct{})}
	p.cmd = exec.Command(words[0], words[1:]...)
	p.cmd.Env, p.cmd.Dir = env, dir
	p.cmd.Stdout, p.cmd.Stderr = &p.stderr, &p.stderr
	p.cmd.WaitDelay = patience
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var err error
	forkthread.Do(func() { err = p.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
		p.code = p.cmd.ProcessState.ExitCode()
		p.stderr.end()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

const gatewaySecret = "a525acacc2e6c2e361b519f147120d91e42ea917de75355f50a12bbb37171941"

// mustNotKnow fails the test if a process of the node, other than the supervisor,
// has the gateway's secret in its environment.
func (n *node) mustNotKnow(t testing.TB, supervisor int) {
	t.Helper()
	children := 0
	for _, p := range n.processes() {
		if p.pid == supervisor {
			continue
		}
		children++
		if environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid)); strings.Contains(string(environ), gatewaySecret) {
			t.Errorf("%v knows the gateway's secret", p)
		}
	}
	if children == 0 {
		t.Error("the supervisor has no children")
	}
}

// TestLocalDispatcher starts supervisors with exactly the environment that
// crunch-dispatch-local gives them, and stops them as that does.
func TestLocalDispatcher(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))
	start := func(uuid, insecure string, args ...string) *process {
		words := append(append([]string{program, "--runtime-engine=docker", "-site-config=" + n.siteFile(t)}, args...), uuid)
		return n.exec(t, []string{
			"PATH=" + os.Getenv("PATH"), "TMPDIR=" + n.tmp(), "ARVADOS_API_HOST=" + c.env["ARVADOS_API_HOST"], "ARVADOS_API_HOST_INSECURE=" + insecure,
			"ARVADOS_API_TOKEN=" + c.env["ARVADOS_DISPATCHER_TOKEN"], "GatewayAuthSecret=" + gatewaySecret,
		}, "/", words...)
	}
	uuid := c.submit(t, image, sh("cat /in/a.txt; "+untilTold+"env"), in)
	p := start(uuid, "1")
	insideContainer(t, n)
	n.mustNotKnow(t, p.cmd.Process.Pid)
	release(t, n)
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if out := stamped(t, c.log(t, record, "stdout.txt")); !strings.HasPrefix(out, "A") || strings.Contains(out, gatewaySecret) {
		t.Errorf("stdout %q", out)
	}
	if strings.Contains(p.stderr.String(), gatewaySecret) {
		t.Error("stderr shows the gateway's secret")
	}

	// It interrupts at every look at the queue.
	uuid = c.submit(t, image, sh("echo part >part.txt; sleep 1000"), in)
	p = start(uuid, "", "-ca-certs="+c.env["SSL_CERT_FILE"])
	awaitFile(t, n, "out/part.txt")
	for range 5 {
		_ = p.cmd.Process.Signal(syscall.SIGINT) // it may have ended
	}
	record = c.finished(t, n, p, uuid, 0, arvados.StateCancelled)
	mustSayInOrder(t, c.log(t, record, "crunch-run.txt"), "caught signal: interrupt\n", "stopping container\n", `copying "part.txt"`, "Cancelled\n")
}

// TestJobScripts runs the scripts that the dispatchers for LSF and Slurm submit,
// by a shell, in what LSF makes of a job's environment.
func TestJobScripts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	var vectors, slurm []struct{ Name, Script string }
	dispatchVectors(t, "dispatch_lsf", &vectors)
	dispatchVectors(t, "dispatch_slurm", &slurm)
	vectors = append(vectors, slurm...)
	start := func(uuid, script string) *process {
		script = strings.ReplaceAll(script, "'crunch-run'", "'"+program+"'")
		script = strings.ReplaceAll(script, "zzzzz-dz642-000000000000001", uuid)
		// Where LSF keeps it.
		path := filepath.Join(n.dir, "1763900000."+uuid+".shell")
		writeFile(t, path, []byte(script))
		env := append(append(append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}, n.settings()...), c.supervisorEnv()...),
			"LSB_JOBID=17", "LSB_JOBNAME="+uuid, "LSB_QUEUE=normal", "LSB_HOSTS=localhost", "LSB_MCPU_HOSTS=localhost 1", "LSB_SUB_HOST=localhost",
			"LSB_JOBFILENAME="+path, "LSB_BATCH_JID=17", "LSB_EXIT_PRE_ABORT=99", "LS_SUBCWD="+n.dir, "LSB_JOBRES_PID=1", "LSF_INVOKE_CMD=bsub", "SHELL=/bin/sh")
		return n.exec(t, env, n.dir, "/bin/sh", path)
	}
	for _, v := range vectors {
		if strings.Contains(v.Script, "it'\\''s") {
			// A configured argument that is no flag leaves two.
			if p := start("zzzzz-dz642-000000000000001", v.Script); p.wait(t) != 2 || !strings.Contains(p.stderr.String(), "missing required argument") {
				t.Errorf("%s: %s", v.Name, p.stderr.String())
			}
			continue
		}
		script := v.Script
		if strings.Contains(script, "-cgroup-parent-subsystem") {
			// The groups of this test are the container's then, as a job's are;
			// that it is within them is tested under Slurm.
			script = strings.ReplaceAll(script, "'-cgroup-parent-subsystem=memory' ", "")
		}
		uuid := c.submit(t, image, sh("echo done"), nil)
		p := start(uuid, script)
		record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
		if out := stamped(t, c.log(t, record, "stdout.txt")); out != "done\n" {
			t.Errorf("%s: stdout %q", v.Name, out)
		}
	}

	// bkill signals all processes of the job, with growing insistence. The script
	// has become the supervisor.
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))
	uuid := c.submit(t, image, sh("cat /in/a.txt; echo part >part.txt; sleep 1000"), in)
	p := start(uuid, vectors[0].Script)
	awaitFile(t, n, "out/part.txt")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		for _, f := range n.processes() {
			if !f.contained {
				_ = syscall.Kill(f.pid, sig)
			}
		}
	}
	record := c.finished(t, n, p, uuid, 0, arvados.StateCancelled)
	mustSayInOrder(t, c.log(t, record, "crunch-run.txt"), "caught signal: interrupt\n", `copying "part.txt"`, "Cancelled\n")
}
