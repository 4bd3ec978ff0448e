package main_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/cgroups/systemd"
	"crunch-oci/gpu/gputest"
)

// gpuImage is busybox, a C library and the program of package gputest: an image
// without anything of a GPU driver.
func gpuImage(t testing.TB, config map[string]any) string {
	t.Helper()
	l := newLayer()
	files := gputest.Probe(t)
	for _, name := range []string{"lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6", "usr/bin/gpuprobe"} {
		l.add(tar.Header{Name: name, Mode: 0o755}, string(files[name]))
	}
	path := filepath.Join(t.TempDir(), "gpu.tar")
	writeFile(t, path, testImage{layers: [][]byte{busyboxLayer(t), l.bytes()}, config: config, tag: "gpu:1"}.dockerSave())
	return path
}

// newGPUNode is a node with a stand-in driver of four GPUs.
func newGPUNode(t testing.TB) (*node, *gputest.Tree) {
	t.Helper()
	n := newNode(t)
	driver := gputest.New(t, 4)
	n.env = append(n.env, "CRUNCH_RUN_GPU_DRIVER_ROOT="+driver.Root)
	return n, driver
}

// A container that asks for two of four GPUs gets two that are near to each
// other, with the driver, and no access to the others.
func TestLocalGPUs(t *testing.T) {
	t.Parallel()
	n, _ := newGPUNode(t)
	image := gpuImage(t, nil)
	res := n.local(t, "--verbose", "--image", image, "--gpus", "2", "--", "sh", "-c",
		"gpuprobe /dev/nvidia0 /dev/nvidia1 /dev/nvidia2 /dev/nvidiactl /dev/nvidia-uvm 195:2 195:255; nvidia-smi; ls /dev/nvidia*; cat /etc/ld.so.conf.d/*gpu.conf; echo $NVIDIA_VISIBLE_DEVICES $CUDA_VISIBLE_DEVICES; cat /lib/firmware/nvidia/*/gsp_ga10x.bin; touch /usr/bin/nvidia-smi; true")
	want := `libcuda.so.1: 0 from /usr/lib/x86_64-linux-gnu/libcuda.so.1
libcuda.so: 0 from /usr/lib/x86_64-linux-gnu/libcuda.so.1
open /dev/nvidia0: No such device or address
open /dev/nvidia1: No such device or address
open /dev/nvidia2: No such file or directory
open /dev/nvidiactl: No such device or address
open /dev/nvidia-uvm: No such device or address
open 195:2: Operation not permitted
open 195:255: No such device or address
stand-in nvidia-smi
/dev/nvidia-uvm
/dev/nvidia-uvm-tools
/dev/nvidia0
/dev/nvidia1
/dev/nvidiactl
# GPU driver of the node, given to this container by crunch-run
/usr/lib/x86_64-linux-gnu
void
firmware`
	if res.stdout != want {
		t.Errorf("the container says\n%s\nwant\n%s", res.stdout, want)
	}
	if !strings.Contains(res.stderr, "Read-only file system") {
		t.Errorf("files of the driver can be written to:\n%s", res.stderr)
	}
	for _, line := range []string{
		"GPU 0: Stand-in A100, GPU-00000000-0000-0000-0000-000000000000, 40960 MiB, 8.0, driver 550.54.15 (12.4)",
		"GPU 1: Stand-in A100, GPU-00000000-0000-0000-0000-000000000001, ",
		"Maximum GPU 1 memory usage was 5%, 2147483648/42949672960 bytes",
	} {
		if !strings.Contains(res.stderr, line) {
			t.Errorf("no %q in\n%s", line, res.stderr)
		}
	}
	stats := n.localLog(t, "crunchstat.txt")
	for _, line := range []string{` gpu:0 40 util 1073741824 mem 42949672960 total 250\.500 watts\n`, ` gpu:1 41 util 2147483648 mem 42949672960 total 250\.501 watts\n`} {
		if n := len(regexp.MustCompile(line).FindAllString(stats, -1)); n < 2 {
			t.Errorf("%d lines %q in crunchstat.txt:\n%s", n, line, stats)
		}
	}
}

// Without asking there is no trace of a GPU, and the driver is not touched.
func TestLocalWithoutGPUs(t *testing.T) {
	t.Parallel()
	n, driver := newGPUNode(t)
	driver.Conf("init", "1000") // NVML would crash
	image := gpuImage(t, map[string]any{"Env": []string{"PATH=/bin:/usr/bin", "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all"}})
	res := n.local(t, "--image", image, "--", "sh", "-c", "gpuprobe /dev/nvidia0 195:0 195:255 510:0; ls /dev/nvidia* /usr/bin/nvidia-smi 2>&1; true")
	want := `libcuda.so.1: libcuda.so.1: cannot open shared object file: No such file or directory
libcuda.so: libcuda.so: cannot open shared object file: No such file or directory
open /dev/nvidia0: No such file or directory
open 195:0: Operation not permitted
open 195:255: Operation not permitted
open 510:0: Operation not permitted
`
	if !strings.HasPrefix(res.stdout, want) || strings.Count(res.stdout, "No such file") != 5 {
		t.Errorf("the container says\n%s\nwant\n%s", res.stdout, want)
	}
}

// Containers of one node do not get the same GPUs, and who finds none free is
// told who has them.
func TestGPUsAreNotShared(t *testing.T) {
	t.Parallel()
	n, _ := newGPUNode(t)
	image := gpuImage(t, nil)
	first := n.start(t, run{args: []string{"local", "--image", image, "--gpus", "3", "--", "sh", "-c", "echo ready; cat /proc/mounts >/dev/null; sleep 1000"}})
	first.stdout.mustSay(t, "ready")
	second := n.local(t, "--image", image, "--gpus", "1", "--", "sh", "-c", "ls /dev/nvidia[0-9]")
	if second.stdout != "/dev/nvidia3\n" {
		t.Errorf("the second container has %q", second.stdout)
	}
	third := n.run(t, "local", "--image", image, "--gpus", "2", "--", "true")
	if third.code != 125 || !strings.Contains(third.stderr, "this node's GPUs are in use: it needs 2, of 4 that would do 1 are free (0: local-dz642-") {
		t.Errorf("exit code %d, stderr:\n%s", third.code, third.stderr)
	}
	list := n.run(t, "gpus")
	if !regexp.MustCompile(`(?m)^2 +cuda +GPU-\S+ +Stand-in A100 +40960 MiB +8\.0 +local-dz642-\w+$`).MatchString(list.stdout) ||
		!regexp.MustCompile(`(?m)^3 .* -$`).MatchString(list.stdout) {
		t.Errorf("crunch-run gpus prints\n%s%s", list.stdout, list.stderr)
	}
	var all []struct {
		Stack   string
		Devices []struct {
			Index     int
			Container *string
		}
	}
	if list = n.run(t, "gpus", "--json"); json.Unmarshal([]byte(list.stdout), &all) != nil || len(all) != 1 || len(all[0].Devices) != 4 {
		t.Fatalf("crunch-run gpus --json prints\n%s%s", list.stdout, list.stderr)
	}
	for _, d := range all[0].Devices {
		if d.Container == nil || strings.HasPrefix(*d.Container, "local-dz642-") != (d.Index < 3) {
			t.Errorf("crunch-run gpus --json prints\n%s", list.stdout)
		}
	}
	// Killed, it leaves the GPUs to the next at once.
	killed(t, n, first)
	last := n.local(t, "--image", image, "--gpus", "4", "--", "sh", "-c", "ls /dev/nvidia[0-9] | wc -l")
	if strings.TrimSpace(last.stdout) != "4" {
		t.Errorf("after a kill the next container has %q GPUs", last.stdout)
	}
}

// When systemd is told to reload its units it writes device rules anew, those of
// its own units; a container's GPUs stay, and the others stay closed.
func TestGPUsAfterDaemonReload(t *testing.T) {
	if !systemd.Running() {
		t.Skip("systemd is not PID 1 here; vmtest runs this where it is")
	}
	n, _ := newGPUNode(t)
	p := n.start(t, run{
		args: []string{"local", "--image", gpuImage(t, nil), "--gpus", "1", "--", "sh", "-c", "i=0; while i=$((i+1)); do gpuprobe /dev/nvidia0 195:1; echo try $i; sleep 0.2; done"},
		env:  []string{"CRUNCH_RUN_CGROUP_BASE="},
	})
	for range 5 {
		if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
			t.Fatalf("daemon-reload: %v: %s", err, out)
		}
		p.stdout.mustSay(t, fmt.Sprintf("try %d\n", strings.Count(p.stdout.String(), "try ")+2))
	}
	p.signal(t, syscall.SIGINT)
	p.wait(t)
	tries := strings.Count(p.stdout.String(), "try ")
	allowed := strings.Count(p.stdout.String(), "open /dev/nvidia0: No such device or address\n")
	denied := strings.Count(p.stdout.String(), "open 195:1: Operation not permitted\n")
	if tries < 10 || allowed < tries || denied < tries {
		t.Errorf("of %d tries its own GPU could be opened in %d, and another was denied in %d:\n%s", tries, allowed, denied, p.stdout.String())
	}
}

// What a scheduler assigns is what the container gets.
func TestAssignedGPUs(t *testing.T) {
	t.Parallel()
	n, _ := newGPUNode(t)
	image := gpuImage(t, nil)
	for assigned, want := range map[string]string{
		"CUDA_VISIBLE_DEVICES=3,1":                                        "/dev/nvidia1\n/dev/nvidia3\n",
		"CUDA_VISIBLE_DEVICES=GPU-00000000-0000-0000-0000-000000000002,0": "/dev/nvidia0\n/dev/nvidia2\n",
		"CUDA_VISIBLE_DEVICES=":                                           "/dev/nvidia0\n/dev/nvidia1\n",
		"NVIDIA_VISIBLE_DEVICES=2,3":                                      "/dev/nvidia2\n/dev/nvidia3\n",
		"CUDA_VISIBLE_DEVICES=9,1":                                        "!has no GPU \"9\"; it has 0, 1, 2, 3",
		"CUDA_VISIBLE_DEVICES=NoDevFiles":                                 "!has given this job no GPU",
		"CUDA_VISIBLE_DEVICES=1":                                          "!it needs 2 GPUs, the scheduler has assigned 1 (CUDA_VISIBLE_DEVICES=1)",
	} {
		p := n.start(t, run{args: []string{"local", "--image", image, "--gpus", "2", "--", "sh", "-c", "ls /dev/nvidia[0-9]"}, env: []string{assigned}})
		code := p.wait(t)
		if message, fails := strings.CutPrefix(want, "!"); fails {
			if code != 125 || !strings.Contains(p.stderr.String(), message) {
				t.Errorf("%s: exit code %d, stderr:\n%s", assigned, code, p.stderr.String())
			}
		} else if code != 0 || p.stdout.String() != want {
			t.Errorf("%s: exit code %d, the container has %q", assigned, code, p.stdout.String())
		}
	}
}

// An error of a GPU is seen by who has it.
func TestGPUErrorIsReported(t *testing.T) {
	t.Parallel()
	n, driver := newGPUNode(t)
	p := n.start(t, run{args: []string{"local", "--verbose", "--image", gpuImage(t, nil), "--gpus", "1", "--", "sh", "-c", "echo ready; sleep 1000"}})
	p.stdout.mustSay(t, "ready")
	driver.FailWithXID(0, 79)
	p.stderr.mustSay(t, "error reported by GPU 0 (GPU-00000000-0000-0000-0000-000000000000): XID 79")
	p.signal(t, syscall.SIGINT)
	p.wait(t)
}

// A site may prefer the CDI specifications its vendor's tool has written; their
// hooks are not run.
func TestGPUsByCDI(t *testing.T) {
	t.Parallel()
	n, driver := newGPUNode(t)
	n.env = append(n.env, "CRUNCH_RUN_GPU=cdi")
	hook := filepath.Join(t.TempDir(), "hook")
	writeFile(t, hook, []byte("#!/bin/sh\ntouch "+hook+".ran\n"))
	if err := os.Chmod(hook, 0o755); err != nil {
		t.Fatal(err)
	}
	lib := "/usr/lib/x86_64-linux-gnu/libcuda.so." + gputest.Version
	driver.File("etc/cdi/nvidia.yaml", strings.NewReplacer("ROOT", driver.Root, "LIB", lib, "HOOK", hook).Replace(`cdiVersion: 0.6.0
kind: nvidia.com/gpu
devices:
  - {name: "0", containerEdits: {deviceNodes: [{path: /dev/nvidia0, hostPath: ROOT/dev/nvidia0}]}}
  - {name: "1", containerEdits: {deviceNodes: [{path: /dev/nvidia1, hostPath: ROOT/dev/nvidia1}]}}
containerEdits:
  env: [FROM_CDI=yes]
  deviceNodes: [{path: /dev/nvidiactl, hostPath: ROOT/dev/nvidiactl}]
  mounts: [{hostPath: ROOTLIB, containerPath: LIB, options: [ro, nosuid, nodev, rbind]}]
  hooks:
    - {hookName: createContainer, path: HOOK, args: [nvidia-ctk, hook, update-ldcache, --folder, /usr/lib/x86_64-linux-gnu]}
    - {hookName: createRuntime, path: HOOK, args: [other]}
`))
	res := n.local(t, "--verbose", "--image", gpuImage(t, nil), "--gpus", "1", "--", "sh", "-c", "gpuprobe /dev/nvidia0 /dev/nvidiactl 195:1; echo $FROM_CDI; ls /dev/nvidia*")
	want := "libcuda.so.1: 0 from /usr/lib/x86_64-linux-gnu/libcuda.so.1\nlibcuda.so: libcuda.so: cannot open shared object file: No such file or directory\n" +
		"open /dev/nvidia0: No such device or address\nopen /dev/nvidiactl: No such device or address\nopen 195:1: Operation not permitted\nyes\n/dev/nvidia0\n/dev/nvidiactl\n"
	if res.stdout != want {
		t.Errorf("the container says\n%s\nwant\n%s", res.stdout, want)
	}
	if !strings.Contains(res.stderr, `CDI: the hook "`+hook+` other" is not run`) {
		t.Errorf("nothing is said about the hook:\n%s", res.stderr)
	}
	if _, err := os.Stat(hook + ".ran"); err == nil {
		t.Error("a hook was run")
	}
	// GPU 0 is free again; without a description the others are of no use.
	p := n.start(t, run{args: []string{"local", "--image", busyboxImage(t), "--gpus", "1", "--", "true"}, env: []string{"CUDA_VISIBLE_DEVICES=3"}})
	if code := p.wait(t); code != 125 || !strings.Contains(p.stderr.String(), "describes GPU 3") {
		t.Errorf("exit code %d, stderr:\n%s", code, p.stderr.String())
	}
	_ = os.Remove(filepath.Join(n.locks(), "crunch-run-broken"))
}

// A site that gives no GPUs to containers puts them back into the queue.
func TestGPUsOff(t *testing.T) {
	t.Parallel()
	n, _ := newGPUNode(t)
	n.env = append(n.env, "CRUNCH_RUN_GPU=off")
	res := n.run(t, "local", "--image", busyboxImage(t), "--gpus", "1", "--", "true")
	if res.code != 125 || !strings.Contains(res.stderr, "(site setting gpu: off)") || !strings.Contains(res.stderr, "state            Queued") {
		t.Errorf("exit code %d, stderr:\n%s", res.code, res.stderr)
	}
}

// AMD's GPUs need no library of the node. A user other than root may use them.
func TestAMDGPUs(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	d := gputest.New(t, 0)
	d.Remove("dev")
	d.Remove("sys")
	for i, render := range []int{128, 129} {
		node := fmt.Sprintf("sys/class/kfd/kfd/topology/nodes/%d/", i+1)
		d.File(node+"properties", fmt.Sprintf("simd_count 440\ngfx_target_version 90010\nlocation_id %d\ndrm_render_minor %d\nunique_id %d\n", (i+1)<<8, render, i+1))
		d.File(node+"mem_banks/0/properties", "heap_type 1\nsize_in_bytes 68719476736\n")
		d.File(fmt.Sprintf("sys/bus/pci/devices/0000:%02x:00.0/gpu_busy_percent", i+1), fmt.Sprintf("%d\n", 10+i))
		d.Node(fmt.Sprintf("dev/dri/renderD%d", render), 226, render)
		if err := errors.Join(os.Chmod(d.Path(fmt.Sprintf("dev/dri/renderD%d", render)), 0o660), os.Chown(d.Path(fmt.Sprintf("dev/dri/renderD%d", render)), 0, 4321)); err != nil {
			t.Fatal(err)
		}
	}
	d.Node("dev/kfd", 238, 0)
	n.env = append(n.env, "CRUNCH_RUN_GPU_DRIVER_ROOT="+d.Root)
	image := gpuImage(t, map[string]any{"User": "1000"})
	p := n.start(t, run{
		args: []string{"local", "--verbose", "--image", image, "--gpus", "1", "--", "sh", "-c", "gpuprobe /dev/kfd /dev/dri/renderD129 | tail -n 2; ls /dev/dri; id -G"},
		env:  []string{"AMD_VISIBLE_DEVICES=1"},
	})
	want := "open /dev/kfd: No such device or address\nopen /dev/dri/renderD129: No such device or address\nrenderD129\n0 4321\n"
	if code := p.wait(t); code != 0 || p.stdout.String() != want {
		t.Errorf("exit code %d, the container says %q, want %q", code, p.stdout.String(), want)
	}
	if want := "GPU 1: AMD gfx90a, GPU-0000000000000002, 65536 MiB, gfx90a, driver"; !strings.Contains(p.stderr.String(), want) {
		t.Errorf("no %q in\n%s", want, p.stderr.String())
	}
	if stats := n.localLog(t, "crunchstat.txt"); !strings.Contains(stats, " gpu:1 11 util\n") {
		t.Errorf("crunchstat.txt:\n%s", stats)
	}
}

// On a cluster the record says what is wanted, and is told of errors. What the
// node does not meet puts the container back into the queue.
func TestGPUsOnCluster(t *testing.T) {
	t.Parallel()
	n, driver := newGPUNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	wants := func(capability string) attrs {
		return attrs{"runtime_constraints": attrs{"vcpus": 1, "ram": 256 << 20, "gpu": attrs{
			"stack": "cuda", "device_count": 1, "driver_version": "12.4", "hardware_target": []string{capability}, "vram": 40 << 30,
		}}}
	}
	uuid := c.submit(t, image, sh("ls /dev/nvidia[0-9]; exec sleep 4247"), wants("8.0"))
	p := c.supervise(t, n, uuid)
	p.stderr.mustSay(t, "Waiting for container to finish")
	waitFor(t, "the list of devices to be complete", func() bool {
		return slices.ContainsFunc(n.processes(), func(p foundProcess) bool { return p.command == "sleep 4247" })
	})
	driver.FailWithXID(0, 48)
	waitFor(t, "the error in the record", func() bool { return len(c.container(t, uuid).RuntimeStatus) > 0 })
	if status := fmt.Sprint(c.container(t, uuid).RuntimeStatus); !strings.Contains(status, "GPU error: XID 48") || !strings.Contains(status, "GPU 0 (GPU-00000000-0000-0000-0000-000000000000): XID 48") {
		t.Errorf("runtime_status %s", status)
	}
	p.signal(t, syscall.SIGTERM)
	record := c.finished(t, n, p, uuid, 0, "Cancelled")
	if out := c.log(t, record, "stdout.txt"); !strings.HasSuffix(out, " /dev/nvidia0\n") {
		t.Errorf("stdout.txt %q", out)
	}

	uuid = c.submit(t, image, sh("true"), wants("9.0"))
	record = c.finished(t, n, c.supervise(t, n, uuid), uuid, 1, "Queued")
	if text := c.log(t, record, "crunch-run.txt"); !strings.Contains(text, "GPU 0 (Stand-in A100) has compute capability 8.0, 9.0 is asked for") {
		t.Errorf("crunch-run.txt:\n%s", text)
	}
}

// "crunch-run check" asks the driver as the start of a container does.
func TestCheckOfGPUs(t *testing.T) {
	t.Parallel()
	n, driver := newGPUNode(t)
	look := func() string {
		// The whole is bounded; on a busy machine that is not enough.
		out := n.run(t, "check", "--timeout", "1m").stdout
		for line := range strings.Lines(out) {
			if strings.Contains(line, " GPU ") {
				return line
			}
		}
		return out
	}
	if line := look(); !strings.Contains(line, "cuda: 4 Stand-in A100, driver 550.54.15 (12.4)") && !strings.Contains(line, "has not answered") {
		t.Errorf("check says %q", line)
	}
	driver.Conf("init", "18")
	if line := look(); !strings.Contains(line, "have different versions: reboot the node") && !strings.Contains(line, "has not answered") {
		t.Errorf("check says %q", line)
	}
}

// A node that cannot do it says why, in one sentence.
func TestNodeWithoutWorkingGPUs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do     func(*gputest.Tree)
		broken bool
		want   string
	}{
		"no GPU": {func(d *gputest.Tree) {
			d.Remove("sys/bus/pci/devices")
			d.File("sys/bus/pci/devices/none", "")
			d.Remove(gputest.LibDir)
		}, false, "the container does not get its GPUs: this node has no GPU of NVIDIA"},
		"no library": {func(d *gputest.Tree) { d.Remove(gputest.LibDir) }, true, "no usable GPU driver on this node: the NVIDIA driver's library libnvidia-ml.so.1 is not installed, or cannot be loaded"},
		"no module":  {func(d *gputest.Tree) { d.Conf("init", "9") }, true, "no usable GPU driver on this node: the NVIDIA kernel module is not loaded"},
		"another module": {func(d *gputest.Tree) { d.Conf("init", "18") }, true,
			"the NVIDIA kernel module and the driver's libraries have different versions: reboot the node, or load the module again"},
		"NVML crashes":  {func(d *gputest.Tree) { d.Conf("init", "1000") }, true, "the NVIDIA driver's library has ended the process that asked it"},
		"half a driver": {func(d *gputest.Tree) { d.Remove(gputest.LibDir + "/libcuda.so." + gputest.Version) }, true, "the NVIDIA driver's version is 550.54.15, its files libcuda.so.550.54.15 are not on this node"},
		"no UVM":        {func(d *gputest.Tree) { d.File("proc/devices", "Character devices:\n195 nvidia\n") }, true, "nvidia-uvm, without which CUDA does not work, is not loaded"},
		"a stale node": {func(d *gputest.Tree) { d.Remove("dev/nvidia0"); d.Node("dev/nvidia0", 1, 3) }, true,
			"/dev/nvidia0 is device 1:3, the driver's is 195:0: remove it"},
		"too few": {func(d *gputest.Tree) { d.Conf("count", "1"); d.Conf("lost", "0") }, false, "it needs 1 GPUs, this node has 0 that would do"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, driver := newGPUNode(t)
			c.do(driver)
			res := n.run(t, "local", "--image", busyboxImage(t), "--gpus", "1", "--", "true")
			if res.code != 125 || !strings.Contains(res.stderr, c.want) || !strings.Contains(res.stderr, "state            Queued") {
				t.Errorf("exit code %d, stderr:\n%s", res.code, res.stderr)
			}
			_, err := os.Stat(filepath.Join(n.locks(), "crunch-run-broken"))
			if (err == nil) != c.broken {
				t.Errorf("node marked as broken: %v", err == nil)
			}
			_ = os.Remove(filepath.Join(n.locks(), "crunch-run-broken"))
			if name != "no library" && name != "NVML crashes" {
				return
			}
			// Whoever needs no GPU does not care.
			if res := n.local(t, "--image", busyboxImage(t), "--", "echo", "fine"); res.stdout != "fine\n" {
				t.Errorf("a container without GPUs says %q", res.stdout)
			}
		})
	}
}

// localLog is a file of the log of the only run of "crunch-run local".
func (n *node) localLog(t testing.TB, name string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(n.results(), "*", "log", name))
	if err != nil || len(found) != 1 {
		t.Fatalf("logs %q, %v", found, err)
	}
	return readFile(t, found[0])
}

// gpuLocks is the directory of GPU locks in that of the run locks.
const gpuLocks = "crunch-run-gpu"
