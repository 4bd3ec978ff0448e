package nodecheck

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
)

// needed are the capabilities (capabilities(7)) without which containers cannot
// be made, given those that Docker gives to containers.
var needed = []struct {
	bit  int
	name string
}{
	{unix.CAP_CHOWN, "CHOWN"}, {unix.CAP_DAC_OVERRIDE, "DAC_OVERRIDE"}, {unix.CAP_FOWNER, "FOWNER"}, {unix.CAP_FSETID, "FSETID"},
	{unix.CAP_KILL, "KILL"}, {unix.CAP_SETGID, "SETGID"}, {unix.CAP_SETUID, "SETUID"}, {unix.CAP_SETPCAP, "SETPCAP"},
	{unix.CAP_NET_ADMIN, "NET_ADMIN"}, {unix.CAP_SYS_CHROOT, "SYS_CHROOT"}, {unix.CAP_SYS_ADMIN, "SYS_ADMIN"},
	{unix.CAP_MKNOD, "MKNOD"}, {unix.CAP_SETFCAP, "SETFCAP"},
	{unix.CAP_NET_RAW, "NET_RAW"}, {unix.CAP_NET_BIND_SERVICE, "NET_BIND_SERVICE"}, {unix.CAP_AUDIT_WRITE, "AUDIT_WRITE"},
}

// essential is how many of needed no container can be made without; the others
// are what containers miss.
const essential = 13

func privileges(c *checker) {
	have, err := capabilities()
	if err != nil {
		c.fail("mount /proc", "cannot find out this process's capabilities: %v", err)
		return
	}
	var missing, lacking []string
	for i, n := range needed {
		if have&(1<<n.bit) == 0 {
			if i < essential {
				missing = append(missing, n.name)
			} else {
				lacking = append(lacking, n.name)
			}
		}
	}
	switch {
	case len(missing) > 0:
		c.fail("start crunch-run with full privileges: not in a container without them, nor in a unit with CapabilityBoundingSet", "root without the capabilities %s", strings.Join(missing, ", "))
	case len(lacking) > 0:
		c.warn("start crunch-run with full privileges", "root; containers will lack the capabilities %s, which Docker gives them", strings.Join(lacking, ", "))
	default:
		c.ok("root with the capabilities that are needed")
	}
}

// capabilities are the effective ones of this process.
func capabilities() (uint64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status has no line CapEff")
}

// namespaces that a container has, by the flag of unshare(2).
var namespaces = []struct {
	flag int
	name string
}{
	{unix.CLONE_NEWNS, "mount"}, {unix.CLONE_NEWUTS, "UTS"}, {unix.CLONE_NEWIPC, "IPC"},
	{unix.CLONE_NEWNET, "network"}, {unix.CLONE_NEWPID, "PID"},
}

func kernel(c *checker) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		c.fail("", "uname: %v", err)
		return
	}
	release := unix.ByteSliceToString(uts.Release[:])
	var missing []string
	for _, ns := range namespaces {
		if err := tryNamespace(ns.flag); err != nil {
			missing = append(missing, fmt.Sprintf("%s (%v)", ns.name, err))
		}
	}
	if len(missing) > 0 {
		c.fail("use a kernel with these namespaces, and look at /proc/sys/user/max_*_namespaces", "Linux %s, cannot make namespaces: %s", release, strings.Join(missing, ", "))
	} else {
		c.ok("Linux %s with mount, UTS, IPC, network and PID namespaces", release)
	}
	for _, d := range []string{"/dev/null", "/dev/zero", "/dev/urandom"} {
		if fi, err := os.Stat(d); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
			c.fail("mount -t devtmpfs devtmpfs /dev", "%s is missing", d)
		}
	}
	seccomp(c)
	appArmor(c)
	selinux(c)
	if err := tryUserNamespace(); err != nil {
		c.note("no user namespaces (%v); containers do not need them", err)
	} else {
		c.ok("user namespaces")
	}
}

// tryNamespace makes one on a thread that ends with it.
func tryNamespace(flag int) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- errMainThread
			return
		}
		done <- unix.Unshare(flag)
	}()
	if err := <-done; !errors.Is(err, errMainThread) {
		return err
	}
	return tryNamespace(flag)
}

// errMainThread says that the goroutine was on the main thread, which must not
// be changed.
var errMainThread = errors.New("on the main thread")

// tryUserNamespace starts a process in one, which does nothing.
func tryUserNamespace() error {
	cmd := exec.Command("/proc/self/exe", "-version")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		return err
	}
	return cmd.Wait()
}

// seccomp asks the kernel which actions a filter may take.
func seccomp(c *checker) {
	if !c.Site.Seccomp {
		if c.SiteErr == nil {
			c.warn("remove the setting, unless the site needs it", "seccomp is off: containers may make every system call")
		}
		return
	}
	actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err == nil && !slices.Contains(strings.Fields(string(actions)), "errno") {
		err = fmt.Errorf("actions are %q", strings.TrimSpace(string(actions)))
	}
	if errors.Is(err, os.ErrNotExist) { // before Linux 4.14
		_, err = unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	}
	if err != nil {
		c.fail("use a kernel with CONFIG_SECCOMP_FILTER, or set seccomp: off", "the kernel cannot filter system calls: %v", err)
		return
	}
	c.ok("seccomp filters")
}
