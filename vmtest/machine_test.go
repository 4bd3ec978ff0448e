package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/gpu/gputest"
	"crunch-oci/internal/forkthread"
)

// repository is the top of the source tree.
const repository = ".."

// machineFiles makes what the machine boots, once.
var machineFiles = sync.OnceValues(func() (string, error) {
	dir, err := filepath.Abs(filepath.Join(repository, ".build/vm"))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Another test process may want the same.
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(repository, "scripts/vm-image.sh"), dir)
	cmd.Stderr = os.Stderr
	return dir, cmd.Run()
})

// A suite is a package's tests, or some of them, which one process runs.
type suite struct {
	pkg string // "oci"
	run string // -test.run
	// skip is -test.skip.
	skip string
}

// A boot is what runs in one machine, one suite after the other.
type boot struct {
	name   string
	suites []suite
}

// An initSystem is what is PID 1 in the machine.
type initSystem struct {
	name string
	// init is the program, cmdline what the kernel's command line tells it.
	init, cmdline string
}

var (
	minimal = initSystem{name: "minimal", init: "/test/init.sh"}
	// selinux is the minimal kind with another security module than Debian's AppArmor.
	selinux = initSystem{name: "selinux", init: "/test/init.sh", cmdline: "security=selinux selinux=1 enforcing=0"}
	systemd = initSystem{
		name: "systemd", init: "/sbin/init",
		cmdline: `systemd.run=/test/unit.sh systemd.run_success_action=none systemd.run_failure_action=none systemd.show_status=no`,
	}
)

// initScript is PID 1 of the minimal kind. Like a service manager it does not
// leave its children in the root group.
const initScript = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t securityfs securityfs /sys/kernel/security
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
hostname machine
if mount -t selinuxfs selinuxfs /sys/fs/selinux; then
	dd if=/test/policy of=/sys/fs/selinux/load bs=1M # in one write
	echo 1 >/sys/fs/selinux/enforce
fi 2>/dev/null
mkdir /sys/fs/cgroup/job
echo +cpu +memory +pids +cpuset +io >/sys/fs/cgroup/cgroup.subtree_control
echo $$ >/sys/fs/cgroup/job/cgroup.procs
/test/run.sh
echo "VM-END $?" >/dev/ttyS0
sleep 60
reboot -f
`

// unitScript runs the suites as a unit that systemd leaves alone: others are
// stopped when the kernel kills a process in them for want of memory
// (systemd.service(5), OOMPolicy=), as some tests make it do.
const unitScript = `#!/bin/sh
exec >/dev/ttyS0 2>&1
cat >/run/systemd/system/tests.service <<EOF
[Service]
Type=oneshot
Delegate=yes
ExecStart=/test/run.sh
EOF
systemctl daemon-reload && systemctl start tests.service
status=$?
[ $status = 0 ] || systemctl status --no-pager --full tests.service
echo "VM-END $status"
`

// runScript runs the suites one after the other. Their output has marks that
// the host reads.
const runScript = `#!/bin/sh
exec >/dev/ttyS0 2>&1 </dev/null
stty -F /dev/ttyS0 -opost 2>/dev/null
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mkdir -p -m 1777 /test/tmp && mount --bind /test/tmp /tmp
for m in overlay fuse loop veth bridge nf_tables; do modprobe $m; done
dmesg -n 1
# A group for the tests in a parent without processes, which can delegate.
own=/sys/fs/cgroup$(sed s/0:://p -n /proc/self/cgroup)
mkdir $own/tests
for pid in $(cat $own/cgroup.procs); do (echo $pid >$own/tests/cgroup.procs) 2>/dev/null; done
echo +cpu +memory +pids >$own/cgroup.subtree_control
export VMTEST_PROGRAMS=/test/src/programs
# Nothing that this kernel has may be skipped for want of it.
export VMTEST_MACHINE=1
`

// rig is what is carried into the machine.
type rig struct {
	dir string // what the second disk holds
}

// newRig compiles the test programs of these packages.
func newRig(t *testing.T, packages []string) *rig {
	t.Helper()
	r := &rig{dir: t.TempDir()}
	src := filepath.Join(r.dir, "src")
	build := func(args ...string) {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Dir = repository
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %q: %v\n%s", args, err, out)
		}
	}
	const tags = "seccomp,netgo,osusergo"
	needsProgram := false
	for _, pkg := range packages {
		dst := filepath.Join(src, pkg)
		mkdir(t, dst)
		build("test", "-c", "-tags", tags, "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dst, "suite.test"), "./"+pkg)
		copyTree(t, filepath.Join(repository, pkg, "testdata"), filepath.Join(dst, "testdata"))
		if pkg == "oci/validation" {
			carryValidation(t, filepath.Join(dst, "carried"))
		}
		needsProgram = needsProgram || pkg == endToEnd
	}
	copyTree(t, filepath.Join(repository, "testdata"), filepath.Join(src, "testdata"))
	command(t, "secilc", "-c", "33", "-f", "/dev/null", "-o", filepath.Join(r.dir, "policy"), "testdata/selinux.cil")
	if needsProgram {
		programs := filepath.Join(src, "programs")
		mkdir(t, programs)
		build("build", "-tags", tags, "-trimpath", "-ldflags", "-s -w -X main.version=1.2.3-e2e", "-o", filepath.Join(programs, "crunch-run"), "./cmd/crunch-run")
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(programs, "crunch-run-probe"), "./cmd/crunch-run/testdata/probe")
		cmd.Dir = repository
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build probe: %v\n%s", err, out)
		}
		gputest.Compile(t, programs)
		busybox := filepath.Join(repository, ".build/busybox.tar")
		if _, err := os.Stat(busybox); err != nil {
			command(t, filepath.Join(repository, "scripts/busybox-image.sh"), busybox)
		}
		mkdir(t, filepath.Join(src, ".build"))
		command(t, "cp", busybox, filepath.Join(src, ".build/busybox.tar"))
	}
	return r
}

// carryValidation brings along what package oci/validation would build.
func carryValidation(t *testing.T, to string) {
	t.Helper()
	programs := []string{"default", "process_capabilities"}
	output := func(script string, args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(repository, "scripts", script), args...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		return strings.TrimSpace(string(out))
	}
	from := output("validation-suite.sh", programs...)
	mkdir(t, filepath.Join(to, "bin"))
	mkdir(t, filepath.Join(to, "source"))
	for _, p := range programs {
		command(t, "cp", filepath.Join(from, "bin", p), filepath.Join(to, "bin"))
	}
	command(t, "cp", filepath.Join(from, "source/runtimetest"), filepath.Join(from, "source/rootfs-amd64.tar.gz"), filepath.Join(to, "source"))
	command(t, "cp", output("peer-runc.sh"), filepath.Join(to, "bin/runc"))
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if _, err := os.Stat(from); errors.Is(err, os.ErrNotExist) {
		return
	}
	mkdir(t, filepath.Dir(to))
	command(t, "cp", "-r", from, to)
}

func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// run runs the suites in a machine with this init, one after the other, each for
// at most patience. Those that the machine did not come to have no verdict.
func (r *rig) run(t *testing.T, sys initSystem, suites []suite, patience time.Duration) []verdict {
	t.Helper()
	files, err := machineFiles()
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString(runScript)
	for i, s := range suites {
		args := fmt.Sprintf("-test.v=test2json -test.timeout %s -test.parallel 2 -test.run '%s'", patience, s.run)
		if s.skip != "" {
			args += fmt.Sprintf(" -test.skip '%s'", s.skip)
		}
		fmt.Fprintf(&script, "cd /test/src/%s && ./suite.test %s; echo \"VM-SUITE %d ENDED $?\"\n", s.pkg, args, i)
	}
	write(t, filepath.Join(r.dir, "init"), sys.init+"\n", 0o644)
	write(t, filepath.Join(r.dir, "init.sh"), initScript, 0o755)
	write(t, filepath.Join(r.dir, "unit.sh"), unitScript, 0o755)
	write(t, filepath.Join(r.dir, "run.sh"), script.String(), 0o755)
	disk := filepath.Join(t.TempDir(), "test.ext4")
	// Sparse, and as large as crunch-run check wants disks to be.
	command(t, "mke2fs", "-q", "-t", "ext4", "-N", "300000", "-d", r.dir, disk, "16g")

	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(len(suites)+1)*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "microvm,accel=tcg", "-cpu", "max", "-m", "3072", "-smp", "2",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", filepath.Join(files, "vmlinuz"), "-initrd", filepath.Join(files, "initrd"),
		"-append", "console=ttyS0 reboot=t panic=-1 systemd.unified_cgroup_hierarchy=1 "+clock(t)+" "+sys.cmdline,
		"-drive", "id=root,if=none,format=raw,snapshot=on,file="+filepath.Join(files, "root.ext4"), "-device", "virtio-blk-device,drive=root",
		"-drive", "id=test,if=none,format=raw,cache=unsafe,file="+disk, "-device", "virtio-blk-device,drive=test")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	// The machine is not waited for once it has said all: how it goes down is not
	// what is tested.
	console := &console{ended: cancel}
	var said io.Writer = console
	if name := os.Getenv("VMTEST_CONSOLE"); name != "" { // to look at meanwhile
		file, err := os.Create(name + "." + filepath.Base(t.Name()))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		said = io.MultiWriter(file, console)
	}
	cmd.Stdout, cmd.Stderr = said, said
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	out, end := read(t, &console.text, len(suites))
	if len(out) < len(suites) {
		if end == "" {
			end = fmt.Sprintf("did not come to its end: %v, %v", err, context.Cause(ctx))
		}
		t.Errorf("the machine %s; %d of %d suites ended\n%s", end, len(out), len(suites), tail(console.text.String(), 8000))
	}
	return out
}

// clock tells the kernel the rate of the time stamp counter, which the emulator
// passes on from this machine's. Where this machine is busy the kernel cannot
// measure it, and then has no clock at all.
func clock(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "cpu MHz" {
			continue
		}
		if mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
			return fmt.Sprintf("tsc_early_khz=%.0f tsc=reliable", mhz*1000)
		}
	}
	return ""
}

func tail(s string, n int) string {
	if len(s) > n {
		s = "..." + s[len(s)-n:]
	}
	return s
}
