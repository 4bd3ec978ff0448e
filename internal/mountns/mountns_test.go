package mountns

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary is its own subject: with MOUNTNS_TEST set it enters a
// namespace, mounts a tmpfs on the named directory and tells what it sees.
func TestMain(m *testing.M) {
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
