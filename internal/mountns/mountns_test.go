package mountns

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary is its own subject: with MOUNTNS_TEST set it enters a
// namespace, mounts a tmpfs on the named directory and tells what it sees.
func TestMain(m *testing.M) {
	if base := os.Getenv("MOUNTNS_TEST_HOST"); base != "" {
		if err := beHost(base); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir := os.Getenv("MOUNTNS_TEST")
	if dir == "" {
		os.Exit(m.Run())
	}
	before := os.Getpid()
	if err := Enter(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if os.Getenv("MOUNTNS_TEST_PIVOT") != "" {
		if err := pivot(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	ns, _ := os.Readlink("/proc/self/ns/mnt")
	fmt.Println(ns, before == os.Getpid(), os.Getenv(marker) == "", strings.Join(os.Args[1:], " "))
	// Wait for the parent's word, so that it can look from outside.
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(0)
}

func TestEnter(t *testing.T) {
	dir := t.TempDir()
	hostNS, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "some", "arguments")
	cmd.Env = append(os.Environ(), "MOUNTNS_TEST="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4096)
	n, _ := stdout.Read(line)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	inside, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(cmd.Process.Pid), "mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, line[:n])
	}
	fields := strings.Fields(string(line[:n]))
	if len(fields) != 5 {
		t.Fatalf("child said %q", line[:n])
	}
	if fields[0] == hostNS {
		t.Error("still in the host's mount namespace")
	}
	if fields[1] != "true" || fields[2] != "true" || fields[3] != "some" {
		t.Errorf("pid kept, marker removed, arguments kept: %q", fields[1:])
	}
	if bytes.Contains(mounts, []byte(dir)) {
		t.Error("a mount leaked to the host")
	}
	if !bytes.Contains(inside, []byte(dir)) {
		t.Error("mount not seen inside")
	}
	if bytes.Contains(inside, []byte("shared:")) {
		t.Error("mounts inside are still shared with the host")
	}
}

// pivot does what a container's runtime does with its root.
func pivot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if left, err := os.ReadDir("/"); err != nil || len(left) != 0 {
		return fmt.Errorf("the new root is not the empty file system: %v, %v", left, err)
	}
	return nil
}

// beHost runs the test binary in a plain chroot below base, with the mounts of
// a host that shares them all, and tells whether one got out.
func beHost(base string) error {
	runtime.LockOSThread()
	root := filepath.Join(base, "root")
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	type mount struct {
		source, target string
		flags          uintptr
	}
	mounts := []mount{
		{"", "/", unix.MS_REC | unix.MS_PRIVATE},
		{base, base, unix.MS_BIND},
		{"", base, unix.MS_SHARED},
		{"/proc", root + "/proc", unix.MS_BIND},
		{"", root + "/proc", unix.MS_SHARED},
	}
	for _, dir := range []string{"/usr", "/lib", "/lib64"} { // of a test binary with cgo
		if _, err := os.Stat(dir); err == nil {
			mounts = append(mounts, mount{dir, root + dir, unix.MS_BIND | unix.MS_REC})
		}
	}
	for _, m := range mounts {
		if m.flags&unix.MS_BIND != 0 {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.source, m.target, "", m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	before, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	cmd := exec.Command("/test", "a", "b")
	cmd.Env = append(os.Environ(), "MOUNTNS_TEST_HOST=", "MOUNTNS_TEST=/work/mnt", "MOUNTNS_TEST_PIVOT=1")
	cmd.Dir = "/work"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line := make([]byte, 4096)
	n, _ := stdout.Read(line)
	after, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, line[:n])
	}
	if !bytes.Equal(before, after) {
		return fmt.Errorf("a mount leaked to the host:\n%s", after)
	}
	return nil
}

// In a plain chroot the root directory is no mount point. What containers need
// works all the same, and nothing of it is seen outside.
func TestEnterInChroot(t *testing.T) {
	base := t.TempDir()
	for _, dir := range []string{"root/work/mnt", "root/proc"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(base, "root/test"), program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "MOUNTNS_TEST_HOST="+base)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
