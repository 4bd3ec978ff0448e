package oci_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/cgroups"
	"crunch-oci/oci"
)

// The whole list of mounts in a container: nothing of the host is among them that
// it was not given. Targets with the options that protect them.
func TestMountsAreTheseOnly(t *testing.T) {
	data := t.TempDir()
	for name, edit := range map[string]func(*oci.Request){"plain": func(*oci.Request) {}, "user namespace": mapped(t), "init": withInit} {
		t.Run(name, func(t *testing.T) {
			got := runScript(t, "cat /proc/self/mountinfo", edit, func(r *oci.Request) {
				r.Mounts = []oci.Mount{{Source: data, Target: "/data", ReadOnly: true}}
			})
			want := map[string]string{ // target -> options that must be there
				"/": "", "/proc": "nosuid nodev noexec", "/dev": "nosuid", "/dev/pts": "nosuid noexec", "/sys": "ro nosuid nodev noexec",
				"/dev/mqueue": "nosuid nodev noexec", "/dev/shm": "nosuid nodev noexec", "/sys/fs/cgroup": "nosuid nodev noexec",
				"/data": "ro", "/etc/hosts": "", "/etc/hostname": "", "/etc/resolv.conf": "",
				// Hidden or protected. Which there are is the kernel's matter.
				"/proc/acpi": "ro", "/proc/asound": "ro", "/proc/interrupts": "", "/proc/kcore": "", "/proc/keys": "", "/proc/latency_stats": "", "/proc/sched_debug": "",
				"/proc/scsi": "ro", "/proc/timer_list": "", "/proc/timer_stats": "", "/sys/devices/virtual/powercap": "ro", "/sys/firmware": "ro",
				"/proc/bus": "ro", "/proc/dynamic_debug": "ro", "/proc/fs": "ro", "/proc/irq": "ro", "/proc/sys": "ro", "/proc/sysrq-trigger": "ro",
			}
			if name == "user namespace" { // nobody may make device nodes there
				for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
					want["/dev/"+d] = ""
				}
			}
			seen := map[string]bool{}
			for line := range strings.Lines(got) {
				f := strings.Fields(line)
				target, options := f[4], strings.Split(f[5], ",")
				must, known := want[target]
				if !known && strings.HasPrefix(target, "/sys/fs/cgroup/") && !cgroups.Unified() {
					must, known = "ro nosuid nodev noexec", true
				}
				if !known {
					t.Errorf("a mount that was not asked for: %s", line)
				}
				for _, o := range strings.Fields(must) {
					if !slices.Contains(options, o) {
						t.Errorf("mount without %s: %s", o, line)
					}
				}
				// Propagation in either direction would show mounts made later. Under a
				// device of the host, which a user namespace has, there can be none; where
				// the host's mounts are shared, as systemd makes them, it is a slave of /dev.
				device := strings.HasPrefix(line[strings.Index(line, " - "):], " - devtmpfs ")
				if strings.Contains(line, " shared:") || strings.Contains(line, " master:") && !device {
					t.Errorf("mounts propagate: %s", line)
				}
				seen[target] = true
			}
			for _, target := range []string{"/", "/proc", "/proc/sys", "/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/sys", "/sys/firmware", "/dev", "/data"} {
				if _, err := os.Stat(target); !seen[target] && (err == nil || target == "/data") {
					t.Errorf("%s is no mount", target)
				}
			}
		})
	}
}

// Of the kernel's own switches none can be thrown: core_pattern and other ways to
// a helper program of the host's root, cgroups' release_agent, the machine itself.
// /sys and /proc/sys are mounted read-only (see above); every other file of /proc
// but the processes' own is written to, by root of the container.
func TestNothingOfTheKernelIsWritable(t *testing.T) {
	script := `cd /proc; for f in $(ls -d * | grep -v '^[0-9]\|^self$\|^thread-self$\|^sys$'); do find /proc/$f -type f; done 2>/dev/null >/tmp/files
		[ $(wc -l </tmp/files) -gt 20 ] || echo "no files"
		while read -r f; do
			[ -c "$f" ] || { echo >>"$f"; } 2>/dev/null && echo "$f"
		done </tmp/files
		for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/hotplug /proc/sys/fs/binfmt_misc/register /proc/sys/vm/panic_on_oom \
			/sys/kernel/uevent_helper /sys/kernel/vmcoreinfo /sys/power/state /sys/module/*/parameters/* /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/notify_on_release /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/devices.allow; do
			[ -e $f ] && { true >>$f; } 2>/dev/null && echo $f
		done
		for d in /sys/fs/cgroup/*; do mkdir $d/x 2>/dev/null && echo $d; done
		for d in debug tracing security; do ls /sys/kernel/$d 2>/dev/null; done; true`
	for name, edit := range map[string]func(*oci.Request){"plain": func(*oci.Request) {}, "user namespace": mapped(t)} {
		t.Run(name, func(t *testing.T) {
			if got := runScript(t, script, withApplets("find", "mkdir"), edit); got != "" {
				t.Errorf("can be written to, or seen:\n%s", got)
			}
		})
	}
}

// withApplets adds commands to the image.
func withApplets(names ...string) func(*oci.Request) {
	return func(r *oci.Request) {
		for _, name := range names {
			_ = os.Symlink("busybox", filepath.Join(r.RootfsPath, "bin", name))
		}
	}
}

// What takes privileges is refused, by capabilities, by the system call filter, or
// by the device rules.
func TestPrivilegedCallsAreRefused(t *testing.T) {
	if !seccompBuilt {
		t.Skip("without system call filter some of these are allowed")
	}
	got := runScript(t, `try() { "$@" >/dev/null 2>&1 && echo "allowed: $*"; }
		try mount -t tmpfs x /tmp; try mount --bind / /tmp; try mount -o remount,rw /proc/sys; try mount -o remount,rw /sys; try umount /proc/kcore; try umount /proc/sys
		try unshare -m true; try unshare -U true; try unshare -n true; try chroot / unshare -r true
		try hostname evil; try swapoff -a; try insmod /bin/busybox; try reboot -f
		try nsenter -t 1 -m true; try pivot_root / /tmp; try dmesg
		for d in "b 8 0" "b 254 0" "c 1 1" "c 10 229" "c 10 200" "c 1 11"; do rm -f /tmp/dev; mknod /tmp/dev $d && try dd if=/tmp/dev of=/dev/null bs=1 count=1; done; true`,
		withApplets("umount", "unshare", "chroot", "swapoff", "insmod", "reboot", "nsenter", "pivot_root", "dmesg", "rm"))
	if got != "" {
		t.Errorf("%s", got)
	}
}

// Processes of a container see, and reach, no process but the container's: not by
// /proc, not by a signal to everybody, not by a number of the host.
func TestProcessesOfTheHostAreOutOfReach(t *testing.T) {
	victim := exec.Command("sleep", "600")
	must(t, victim.Start())
	defer func() { _ = victim.Process.Kill(); _ = victim.Wait() }()
	got := runScript(t, fmt.Sprintf(`for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; echo; done | grep -v '^sh -c\|^tr\|^grep\|^$'; ls -d /proc/%d /proc/%d 2>/dev/null; kill -9 -1; kill -9 %d %d 2>/dev/null && echo killed; true`,
		os.Getpid(), victim.Process.Pid, victim.Process.Pid, os.Getpid()), withApplets("tr"))
	if got != "" {
		t.Errorf("%s", got)
	}
	if err := victim.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the host's process: %v", err)
	}
}

// Keys that this process holds, in which secrets of a login session may be, are not
// the container's.
func TestKeyringsAreNotInherited(t *testing.T) {
	const add, describe = "user", "crunch-run-test-secret"
	var key int
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // a keyring belongs to the thread, which ends with this
		if _, err = unix.KeyctlJoinSessionKeyring("crunch-run-test"); err == nil {
			key, err = unix.AddKey(add, describe, []byte("secret"), unix.KEY_SPEC_SESSION_KEYRING)
		}
	}()
	<-done
	if err != nil {
		t.Logf("no keyrings here: %v", err)
	}
	got := runScript(t, "cat /proc/keys /proc/key-users 2>/dev/null | grep -c "+describe+"; cat /proc/keys | wc -l")
	if got != "0\n0\n" {
		t.Errorf("key %d: %q", key, got)
	}
	spec, err := oci.NewSpec(newRequest(t, newID(), "true"))
	must(t, err)
	if seccompBuilt {
		for _, call := range spec.Linux.Seccomp.Syscalls {
			for _, name := range []string{"keyctl", "add_key", "request_key"} {
				if call.Action == "SCMP_ACT_ALLOW" && slices.Contains(call.Names, name) {
					t.Errorf("%s is allowed", name)
				}
			}
		}
	}
}

// Abstract sockets belong to the network namespace (CVE-2020-15257): with one of
// its own, a container sees none of the host's.
func TestAbstractSocketsAreNotShared(t *testing.T) {
	name := fmt.Sprintf("@crunch-run-test-%d", os.Getpid())
	l, err := net.Listen("unix", name)
	must(t, err)
	defer l.Close()
	if got := runScript(t, "grep -c crunch-run-test /proc/net/unix"+"; true"); got != "0\n" {
		t.Errorf("%q", got)
	}
}
