// These tests run the real program as its users do, as root, on the real kernel:
// it is built once, executed as a process, and judged by what it prints, what it
// leaves in Keep, and what it leaves on the node, which should be nothing.
package main_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// testVersion is what the program under test says of itself.
const testVersion = "1.2.3-e2e"

// programVar has the path of a program that has been built already.
const programVar = "CRUNCH_RUN_TEST_PROGRAM"

// program is the path of the program under test, called crunch-run.
var program string

func TestMain(m *testing.M) {
	os.Exit(mainWithProgram(m))
}

func mainWithProgram(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of cmd/crunch-run need root: they run containers")
		return 1
	}
	if dir := os.Getenv(programsEnv); dir != "" {
		program = filepath.Join(dir, "crunch-run")
		return m.Run()
	}
	if program = os.Getenv(programVar); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "crunch-run-e2e.")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "crunch-run")
	// As the Makefile does it, so that the compiled packages are shared with it.
	err = goBuild(nil, "-trimpath", "-tags", "seccomp,netgo,osusergo",
		"-ldflags", "-s -w -X main.version="+testVersion, "-o", program, ".")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// programsEnv names a directory with the programs, crunch-run and
// crunch-run-probe, for machines that have no compiler (see vmtest).
const programsEnv = "VMTEST_PROGRAMS"

func goBuild(env []string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// probe is a program for the inside of containers (testdata/probe), linked
// statically.
var probe = sync.OnceValues(func() ([]byte, error) {
	path := program + "-probe"
	if os.Getenv(programsEnv) != "" {
		return os.ReadFile(path)
	}
	if err := goBuild([]string{"CGO_ENABLED=0"}, "-trimpath", "-ldflags", "-s -w", "-o", path, "./testdata/probe"); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// cacheDir keeps the images that are made of Debian packages between runs.
const cacheDir = "../../.build"

// cachedImage returns the path of an image tarball, made by a script of the
// repository unless an earlier run has made it.
func cachedImage(t testing.TB, name, script string, args ...string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(cacheDir, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	// Another test, of this process or of another, may want the same.
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command(filepath.Join("../../scripts", script), append([]string{path}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		if !mirrorReachable() {
			t.Skipf("no network to make the image %s with, and no earlier run has made it:\n%s", name, out)
		}
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return path
}

// mirrorReachable tells whether the mirror that apt is configured with answers.
func mirrorReachable() bool {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil || len(out) == 0 {
		return true // not the network's fault
	}
	mirror, _, _ := strings.Cut(string(out), "\n")
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Get(mirror)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return true
}

// busyboxImage is the path of a small image as "docker save" writes it.
func busyboxImage(t testing.TB) string {
	t.Helper()
	return cachedImage(t, "busybox.tar", "busybox-image.sh")
}

// debianImage is the path of an image of about 330 MB with Python and a compiler.
func debianImage(t testing.TB) string {
	t.Helper()
	return cachedImage(t, "debian-python3-gcc.tar", "debian-image.sh", "python3", "gcc", "libc6-dev")
}
