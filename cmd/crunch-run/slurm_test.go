package main_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/internal/forkthread"
)

// slurmVar asks for the tests with Slurm: "make test-dispatchers".
const slurmVar = "CRUNCH_RUN_TEST_SLURM"

// nodeVar is set in a second process of the tests, on a node of its own.
const nodeVar = "CRUNCH_RUN_TEST_NODE"

// onOwnNode runs test, the current one, in a process of its own on what looks
// like a compute node of its own (testdata/slurm/node.sh).
func onOwnNode(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if os.Getenv(nodeVar) != "" {
		test(t)
		return
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		t.Skip("this machine has no cgroup v1 hierarchies: ", err)
	}
	cmd := exec.Command("testdata/slurm/node.sh", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=8m")
	cmd.Env = append(os.Environ(), nodeVar+"=1", programVar+"="+program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var out watched
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, &out)
	}
}

// TestSlurm runs jobs under Slurm's own daemons as crunch-dispatch-slurm submits
// and cancels them.
func TestSlurm(t *testing.T) {
	if os.Getenv(slurmVar) == "" {
		t.Skip("needs Slurm and some minutes: make test-dispatchers")
	}
	onOwnNode(t, testSlurm)
}

// TestJobCgroup is the short form of TestSlurm: a job's cgroup, in some
// hierarchies only, and the container within it.
func TestJobCgroup(t *testing.T) {
	t.Parallel()
	onOwnNode(t, func(t *testing.T) {
		for _, h := range []string{"memory", "freezer"} {
			dir := "/sys/fs/cgroup/" + h + "/slurm/uid_0/job_1/step_batch"
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			writeFile(t, dir+"/cgroup.procs", fmt.Append(nil, os.Getpid()))
			defer func() { writeFile(t, "/sys/fs/cgroup/"+h+"/cgroup.procs", fmt.Append(nil, os.Getpid())) }()
		}
		n := newNode(t)
		c := startCluster(t, n)
		uuid := c.submit(t, c.storeTools(t), sh(untilTold+"true"), nil)
		p := c.supervise(t, n, uuid, "-cgroup-parent-subsystem=memory", "--runtime-engine=docker")
		root, groups := containerOf(t, uuid)
		for line := range strings.Lines(groups) {
			if !strings.HasSuffix(line, ":/slurm/uid_0/job_1/step_batch/"+uuid+"\n") && !strings.HasPrefix(line, "0::") {
				t.Errorf("cgroup of the container: %s", line)
			}
		}
		writeFile(t, filepath.Join(root, "out/go"), nil)
		c.finished(t, n, p, uuid, 0, arvados.StateComplete)
		if left := groupsNamed(uuid); len(left) > 0 {
			t.Errorf("cgroups left behind: %v", left)
		}
		if jobs := groupsNamed("job_1"); len(jobs) != 2 {
			t.Errorf("the job's groups are %v, want those in which it was", jobs)
		}
	})
}

func testSlurm(t *testing.T) {
	s := startSlurm(t)
	c := startCluster(t, s.node)
	image := c.storeTools(t)
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))

	t.Run("complete", func(t *testing.T) {
		uuid := c.submit(t, image, sh("cat /in/a.txt; "+untilTold+"echo done"), in)
		job := s.submit(t, c, uuid)
		root, groups := containerOf(t, uuid)
		// The container is within what Slurm has given the job.
		if want := fmt.Sprintf("memory:/slurm_slurm-node/uid_0/job_%s/step_batch/", job); !strings.Contains(groups, want) || !strings.Contains(groups, uuid) {
			t.Errorf("cgroups of the container lack %s:\n%s", want, groups)
		}
		writeFile(t, filepath.Join(root, "out/go"), nil)
		s.ended(t, uuid)
		record := c.container(t, uuid)
		if record.State != arvados.StateComplete {
			t.Fatalf("state %s\n%s", record.State, s.output(job))
		}
		if out := stamped(t, c.log(t, record, "stdout.txt")); out != "Adone\n" {
			t.Errorf("stdout %q", out)
		}
	})
	t.Run("memory of the job", func(t *testing.T) {
		// Slurm's limit for the job holds for the container in it.
		uuid := c.submit(t, image, []string{"probe", "eat", "600"}, attrs{"runtime_constraints": attrs{"vcpus": 1, "ram": 1 << 30}})
		job := s.submit(t, c, uuid, "--mem=300")
		s.ended(t, uuid)
		record := c.container(t, uuid)
		if record.State != arvados.StateComplete || record.ExitCode == nil || *record.ExitCode != 137 {
			t.Fatalf("state %s, exit code %v\n%s", record.State, record.ExitCode, s.output(job))
		}
		if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, "out of memory") {
			t.Errorf("the log does not say why:\n%s", log)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		uuid := c.submit(t, image, sh("echo part >part.txt; sleep 1000"), in)
		job := s.submit(t, c, uuid)
		containerOf(t, uuid)
		s.cancel(t, uuid)
		s.ended(t, uuid)
		record := c.container(t, uuid)
		if record.State != arvados.StateCancelled || record.ExitCode == nil || *record.ExitCode != 137 {
			t.Fatalf("state %s, exit code %v\n%s", record.State, record.ExitCode, s.output(job))
		}
		mustSayInOrder(t, c.log(t, record, "crunch-run.txt"), "caught signal: terminated\n", "stopping container\n", `copying "part.txt"`, "Cancelled\n")
	})
	t.Run("cancel while pending", func(t *testing.T) {
		uuid := c.submit(t, image, sh("true"), nil)
		s.submit(t, c, uuid, "--hold")
		s.cancel(t, uuid)
		s.ended(t, uuid)
		if state := c.container(t, uuid).State; state != arvados.StateLocked {
			t.Errorf("state %s", state)
		}
	})
	t.Run("killed, then another", func(t *testing.T) {
		uuid := c.submit(t, image, sh("sleep 1000"), in)
		s.submit(t, c, uuid)
		containerOf(t, uuid)
		s.run(t, "", "scancel", "--name="+uuid, "--full", "--signal=KILL")
		s.ended(t, uuid)
		next := c.submit(t, image, sh("true"), nil)
		job := s.submit(t, c, next)
		s.ended(t, next)
		if state := c.container(t, next).State; state != arvados.StateComplete {
			t.Errorf("state %s\n%s", state, s.output(job))
		}
	})
	t.Run("time limit", func(t *testing.T) {
		uuid := c.submit(t, image, sh("echo part >part.txt; sleep 1000"), in)
		job := s.submit(t, c, uuid, "--time=1") // a minute, the shortest there is
		containerOf(t, uuid)
		s.ended(t, uuid)
		record := c.container(t, uuid)
		if record.State != arvados.StateCancelled {
			t.Fatalf("state %s\n%s", record.State, s.output(job))
		}
		mustSayInOrder(t, c.log(t, record, "crunch-run.txt"), "caught signal: terminated\n", `copying "part.txt"`, "Cancelled\n")
	})
	waitFor(t, "Slurm to remove its groups", func() bool { return len(groupsNamed("job_*")) == 0 })
	if left := groupsNamed("?????-dz642-*"); len(left) > 0 {
		t.Errorf("cgroups left behind: %v", left)
	}
}

// slurm is a cluster of one node.
type slurm struct {
	*node
	dir string
	env []string
}

// startSlurm starts Slurm's daemons.
func startSlurm(t *testing.T) *slurm {
	t.Helper()
	s := &slurm{node: newNode(t)}
	s.dir = filepath.Join(s.node.dir, "slurm")
	for _, d := range []string{"", "state", "spool", "munge", "out"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// munged refuses directories on the way that others may write to.
	for dir := s.dir; dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, fileMode(t, dir)|0o555); err != nil {
			t.Fatal(err)
		}
	}
	munge := filepath.Join(s.dir, "munge")
	key := filepath.Join(munge, "key")
	writeFile(t, key, []byte(strings.Repeat("k", 1024)))
	if err := os.Chmod(key, 0o400); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(s.dir, "slurm.conf")
	writeFile(t, conf, fmt.Appendf(nil, `
ClusterName=e2e
SlurmctldHost=slurm-node(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=%[1]s/munge/socket
StateSaveLocation=%[1]s/state
SlurmdSpoolDir=%[1]s/spool
SlurmctldPidFile=%[1]s/slurmctld.pid
SlurmdPidFile=%[1]s/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
KillWait=30
NodeName=slurm-node NodeAddr=10.77.0.1 CPUs=4 RealMemory=4000 TmpDisk=100000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
`, s.dir))
	writeFile(t, filepath.Join(s.dir, "cgroup.conf"), []byte("CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainRAMSpace=yes\nConstrainCores=yes\n"))
	s.env = []string{"PATH=" + os.Getenv("PATH"), "SLURM_CONF=" + conf}
	s.daemon(t, "munged", "--foreground", "--force", "--key-file="+key, "--socket="+munge+"/socket", "--pid-file="+munge+"/pid", "--seed-file="+munge+"/seed", "--log-file="+munge+"/log")
	waitFor(t, "munged", func() bool { _, err := os.Stat(munge + "/socket"); return err == nil })
	s.daemon(t, "slurmctld", "-D", "-f", conf)
	s.daemon(t, "slurmd", "-D", "-f", conf, "-N", "slurm-node")
	waitFor(t, "an idle node", func() bool {
		out, _ := s.command("", "sinfo", "--noheader", "--format=%T").Output()
		return strings.TrimSpace(string(out)) == "idle"
	})
	return s
}

func (s *slurm) daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	var log watched
	cmd := exec.Command("/usr/sbin/"+name, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = time.Second
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, tail(log.String(), 3000))
		}
	})
}

func (s *slurm) command(stdin, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env, cmd.Dir = s.env, s.dir
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

func (s *slurm) run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	out, err := s.command(stdin, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// submit submits the job of a container, as the dispatcher does, and returns its
// number.
func (s *slurm) submit(t *testing.T, c *cluster, uuid string, more ...string) (job string) {
	t.Helper()
	script := "#!/bin/sh\nGatewayAuthSecret='0123abcd' exec '" + program + "' '-cgroup-parent-subsystem=memory' '--runtime-engine=singularity' '--runtime-engine=docker' '" + uuid + "'\n"
	args := append([]string{"--nice=10000", "--no-requeue", "--job-name=" + uuid, "--mem=1830", "--cpus-per-task=1", "--tmp=1024", "--parsable", "--output=" + s.dir + "/out/%j"}, more...)
	cmd := s.command(script, "sbatch", args...)
	// sbatch takes the whole environment along.
	cmd.Env = append(append(append(cmd.Env, s.settings()...), c.supervisorEnv()...), "ARVADOS_API_HOST_INSECURE=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sbatch: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// cancel sends what the dispatcher sends, once.
func (s *slurm) cancel(t *testing.T, uuid string) {
	t.Helper()
	s.run(t, "", "scancel", "--name="+uuid, "--state=pending")
	for _, state := range []string{"running", "suspended"} {
		s.run(t, "", "scancel", "--name="+uuid, "--batch", "--signal=TERM", "--state="+state)
	}
}

// ended waits until the job is gone.
func (s *slurm) ended(t *testing.T, uuid string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for strings.TrimSpace(s.run(t, "", "squeue", "--noheader", "--name="+uuid)) != "" {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the job does not end:\n%s", s.run(t, "", "squeue"))
		}
	}
}

// output is what a job has printed.
func (s *slurm) output(job string) string {
	text, _ := os.ReadFile(filepath.Join(s.dir, "out", job))
	return tail(string(text), 3000)
}

// containerOf waits for the container to run its command, and returns its root
// and its cgroups.
func containerOf(t *testing.T, uuid string) (root, groups string) {
	t.Helper()
	waitFor(t, "a program in the container", func() bool {
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			text, _ := os.ReadFile(dir + "/cgroup")
			exe, _ := os.Readlink(dir + "/exe")
			if strings.Contains(string(text), "/"+uuid) && exe != "" && !strings.Contains(exe, "crunch-run") && !strings.Contains(exe, "memfd") {
				root, groups = dir+"/root", string(text)
				return true
			}
		}
		return false
	})
	return root, groups
}

// groupsNamed finds cgroups by their name, in all hierarchies.
func groupsNamed(pattern string) (found []string) {
	for _, depth := range []string{"", "*/", "*/*/", "*/*/*/", "*/*/*/*/"} {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + depth + pattern)
		found = append(found, dirs...)
	}
	return found
}
