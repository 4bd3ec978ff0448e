package main_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"crunch-oci/arvados"
)

// clusterConfiguration is the cluster's own, whose volume is on this machine, as
// a dispatcher knows it.
func clusterConfiguration(t *testing.T, n *node) map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.dir, "cluster", "config.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Clusters map[string]map[string]any `yaml:"Clusters"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, c := range file.Clusters {
		return c
	}
	t.Fatal("no cluster in its configuration")
	return nil
}

func section(c map[string]any, name string) map[string]any {
	s, _ := c[name].(map[string]any)
	if s == nil {
		s = make(map[string]any)
		c[name] = s
	}
	return s
}

// localVolume is the volume of superviseLocal.
const localVolume = "local-nyw5e-000000000000000"

// findChild finds a living child of a process by its command line; 0: there is
// none. It has nothing of the node in its environment.
func findChild(parent int, command string) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		stat, _ := os.ReadFile(dir + "/stat")
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[0] != "Z" && fields[1] == strconv.Itoa(parent) && strings.Contains(strings.ReplaceAll(string(cmdline), "\x00", " "), command) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			return pid
		}
	}
	return 0
}

func childOf(t *testing.T, parent int, command string) (pid int) {
	t.Helper()
	waitFor(t, "a process "+command, func() bool { pid = findChild(parent, command); return pid != 0 })
	return pid
}

// superviseLocal starts a supervisor as a dispatcher does that knows the cluster's
// configuration, edited: this node reaches its volumes.
func (c *cluster) superviseLocal(t *testing.T, n *node, uuid string, edit func(cluster map[string]any)) *process {
	t.Helper()
	cluster := clusterConfiguration(t, n)
	volume := map[string]any{"Driver": "Directory", "DriverParameters": map[string]any{"Root": filepath.Join(n.dir, "cluster", "keep")}, "Replication": 1}
	cluster["Volumes"] = map[string]any{localVolume: volume}
	section(cluster, "Collections")["DefaultReplication"] = 1
	section(cluster, "Containers")["LocalKeepBlobBuffersPerVCPU"] = 1
	section(cluster, "Containers")["LocalKeepLogsToContainerLog"] = "all"
	edit(cluster)
	env := map[string]string{}
	for _, kv := range c.supervisorEnv() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	message, err := json.Marshal(map[string]any{"Env": env, "KeepBuffers": 8, "Cluster": cluster})
	if err != nil {
		t.Fatal(err)
	}
	return n.start(t, run{args: []string{"-stdin-config", uuid}, stdin: strings.NewReader(string(message))})
}

// A container on a node that reaches the volumes gets a block server of its own,
// which is watched, and whose death is no more than a delay.
func TestLocalKeepstore(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	input := c.store(t, map[string][]byte{"a.txt": []byte("A")})
	request := withInput(input)
	request["runtime_constraints"] = attrs{"vcpus": 2, "ram": 256 << 20}

	t.Run("used, killed and back", func(t *testing.T) {
		uuid := c.submit(t, image, sh(untilTold+"cat /in/a.txt; echo data >f"), request)
		p := c.superviseLocal(t, n, uuid, func(map[string]any) {})
		insideContainer(t, n)
		keepstore := childOf(t, p.cmd.Process.Pid, "keepstore -config=-")
		if err := syscall.Kill(keepstore, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		p.stderr.mustSay(t, "local keepstore process ended: signal: killed -- starting it again in 1s")
		release(t, n)
		record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
		if got := c.file(t, record.Output, "f"); got != "data\n" {
			t.Errorf("output %q", got)
		}
		log := c.log(t, record, "crunch-run.txt")
		mustSayInOrder(t, log, "starting keepstore on http://", "using local keepstore process (pid ", ", writing logs to keepstore.txt in log collection", "Maximum keepstore memory rss usage was ")
		if text := c.log(t, record, "keepstore.txt"); strings.Count(text, `"msg":"listening"`) != 2 || !strings.Contains(text, `"msg":"response"`) {
			t.Errorf("keepstore.txt:\n%s", text)
		}
		if pid := findChild(p.cmd.Process.Pid, "keepstore -config=-"); pid != 0 {
			t.Errorf("the keepstore outlives its supervisor: %d", pid)
		}
	})
	for name, tt := range map[string]struct {
		edit func(cluster map[string]any)
		said string
	}{
		"logs of errors only": {func(c map[string]any) { section(c, "Containers")["LocalKeepLogsToContainerLog"] = "errors" }, "writing logs to keepstore.txt"},
		"another driver": {func(c map[string]any) {
			section(section(c, "Volumes"), localVolume)["Driver"] = "Azure"
		},
			"volume local-nyw5e-000000000000000: driver Azure is not supported by this keepstore; using the cluster's keep services\n"},
		"parameters that cannot be": {func(c map[string]any) {
			v := section(section(c, "Volumes"), localVolume)
			v["Driver"], v["DriverParameters"] = "S3", map[string]any{"Region": "us-east-1"}
		}, "volume local-nyw5e-000000000000000: DriverParameters: Bucket is empty; using the cluster's keep services\n"},
		"a bucket that cannot be reached": {func(c map[string]any) {
			v := section(section(c, "Volumes"), localVolume)
			v["Driver"], v["DriverParameters"] = "S3", map[string]any{"Bucket": "blocks", "Endpoint": "http://127.0.0.1:1", "AccessKeyID": "k", "SecretAccessKey": "hush"}
		}, "crunch-run keepstore: volume local-nyw5e-000000000000000: S3 list blocks/ at 127.0.0.1:1: "},
		"a volume that is not here": {func(c map[string]any) {
			section(section(section(c, "Volumes"), localVolume), "DriverParameters")["Root"] = "/nowhere"
		}, "not using a local keepstore process: keepstore child process exited; using the cluster's keep services\n"},
		"no management token": {func(c map[string]any) { c["ManagementToken"] = "" }, "not using a local keepstore process: ManagementToken is not set"},
		"replication too low": {func(c map[string]any) { section(c, "Collections")["DefaultReplication"] = 2 },
			"not starting a local keepstore process because a writable volume (local-nyw5e-000000000000000) has replication less than Collections.DefaultReplication (1 < 2)\n"},
	} {
		t.Run(name, func(t *testing.T) {
			uuid := c.submit(t, image, sh("cat /in/a.txt"), request)
			record := c.finished(t, n, c.superviseLocal(t, n, uuid, tt.edit), uuid, 0, arvados.StateComplete)
			if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, tt.said) {
				t.Errorf("%q is not in the log:\n%s", tt.said, log)
			} else if strings.Contains(log, "hush") {
				t.Errorf("a secret is in the log:\n%s", log)
			}
			if out := stamped(t, c.log(t, record, "stdout.txt")); out != "A" {
				t.Errorf("stdout %q", out)
			}
			if name == "logs of errors only" {
				if text := c.log(t, record, "keepstore.txt"); strings.Contains(text, `"msg":"response"`) || !strings.Contains(text, "listening") {
					t.Errorf("keepstore.txt:\n%s", text)
				}
			}
		})
	}
}
