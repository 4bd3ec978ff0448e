package lease

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"crunch-oci/gpu/device"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("LEASE_TEST_DIR"); dir != "" {
		if err := borrower(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func gpus(n int) (all []device.Device) {
	for i := range n {
		all = append(all, device.Device{Index: i, UUID: fmt.Sprintf("GPU-%d", i), NUMA: -1})
	}
	return all
}

// first chooses the first n that are free.
func first(n int) func([]device.Device) ([]device.Device, error) {
	return func(free []device.Device) ([]device.Device, error) {
		if len(free) < n {
			return nil, device.ErrBusy
		}
		return free[:n], nil
	}
}

// borrower is another supervisor: it takes GPUs again and again, and makes sure
// that it is alone with them by files that only one can make.
func borrower(dir string) error {
	locks, marks := Dir(filepath.Join(dir, "locks")), filepath.Join(dir, "marks")
	me, err := strconv.Atoi(os.Getenv("LEASE_TEST_NUMBER"))
	if err != nil {
		return err
	}
	for got := 0; got < 15; {
		owner := Owner{UUID: fmt.Sprintf("container-%d", me), PID: os.Getpid()}
		l, err := locks.Take(context.Background(), gpus(8), owner, first(1+(me+got)%3))
		if errors.Is(err, device.ErrBusy) {
			continue
		}
		if err != nil {
			return err
		}
		got++
		for _, d := range l.Devices() {
			f, err := os.OpenFile(filepath.Join(marks, d.UUID), os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("GPU %s is somebody else's: %w", d.UUID, err)
			}
			if o := locks.Holder(d.UUID); o.UUID != owner.UUID || o.GPU != d.Label() {
				return fmt.Errorf("GPU %s is said to be held by %+v", d.UUID, o)
			}
			_ = f.Close()
		}
		for _, d := range l.Devices() {
			if err := os.Remove(filepath.Join(marks, d.UUID)); err != nil {
				return err
			}
		}
		if os.Getenv("LEASE_TEST_HOLD") != "" {
			fmt.Println("holding")
			_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		}
		if err := l.Release(); err != nil {
			return err
		}
	}
	return nil
}

func startBorrower(t *testing.T, dir string, number int, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), "LEASE_TEST_DIR="+dir, "LEASE_TEST_NUMBER="+strconv.Itoa(number)), env...)
	return cmd
}

// Twenty processes share eight GPUs, and no two ever have the same.
func TestNeverOverlaps(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "marks"), 0o755); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 20)
	for i := range cap(results) {
		go func() {
			out, err := startBorrower(t, dir, i).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("process %d: %w: %s", i, err, out)
			}
			results <- err
		}()
	}
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// The kernel takes the GPUs back when their supervisor dies, but they are lent
// again only when what it left has been cleaned up.
func TestOwnerIsKilled(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "marks"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := startBorrower(t, dir, 0, "LEASE_TEST_HOLD=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "holding\n" {
		t.Fatalf("%q, %v", line, err)
	}
	locks := Dir(filepath.Join(dir, "locks"))
	if _, err := locks.Take(t.Context(), gpus(1), Owner{UUID: "other"}, first(1)); !errors.Is(err, device.ErrBusy) {
		t.Fatalf("a GPU that is held: %v", err)
	}
	if s := locks.Holders(gpus(2)); s != "0: container-0" {
		t.Errorf("holders %q", s)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	l, err := locks.Take(t.Context(), gpus(1), Owner{UUID: "other"}, first(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	if o := locks.Holder("GPU-0"); o != (Owner{}) {
		t.Errorf("holder of a free GPU: %+v", o)
	}
}

func TestRemainsAreWaitedFor(t *testing.T) {
	dir := t.TempDir()
	locks := Dir(filepath.Join(dir, "locks"))
	remains := filepath.Join(dir, "run")
	if err := os.Mkdir(remains, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := locks.Take(t.Context(), gpus(1), Owner{UUID: "dead", Remains: remains}, first(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range l.files { // as death closes them
		_ = f.Close()
	}
	// Who has no need of it does not wait.
	l, err = locks.Take(t.Context(), gpus(2), Owner{UUID: "other"}, first(1))
	if err != nil || l.Devices()[0].Index != 1 {
		t.Fatalf("%v, %v", l, err)
	}
	asked := make(chan struct{})
	go func() {
		<-asked
		_ = os.Remove(remains)
	}()
	n := 0
	second, err := locks.Take(t.Context(), gpus(2), Owner{UUID: "third"}, func(free []device.Device) ([]device.Device, error) {
		if n++; n == 1 {
			close(asked)
		}
		return first(1)(free)
	})
	if err != nil || n < 2 || second.Devices()[0].Index != 0 {
		t.Fatalf("asked %d times: %v", n, err)
	}
	// The same container, run again here, does not wait for itself.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := errors.Join(l.Release(), second.Release(), os.Mkdir(remains, 0o755)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := locks.Take(ctx, gpus(1), Owner{UUID: "dead", Remains: remains}, first(1))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range l.files {
			_ = f.Close()
		}
	}
}

// A scheduler's choice is obeyed, also if it is somebody else's.
func TestShare(t *testing.T) {
	locks := Dir(t.TempDir())
	one, err := locks.Take(t.Context(), gpus(1), Owner{UUID: "one"}, first(1))
	if err != nil {
		t.Fatal(err)
	}
	two, err := locks.Share(t.Context(), gpus(2), Owner{UUID: "two"})
	if err != nil {
		t.Fatal(err)
	}
	if len(two.Devices()) != 2 || len(two.Shared) != 1 || two.Shared["GPU-0"].UUID != "one" {
		t.Errorf("devices %v, shared %v", two.Devices(), two.Shared)
	}
	if err := two.Release(); err != nil {
		t.Fatal(err)
	}
	if locks.Holder("GPU-0").UUID != "one" || locks.Holder("GPU-1").UUID != "" {
		t.Errorf("held by %v and %v", locks.Holder("GPU-0"), locks.Holder("GPU-1"))
	}
	if err := one.Release(); err != nil {
		t.Fatal(err)
	}
}

// Nor does it wait for ever for what a dead run has left.
func TestShareWithTheDead(t *testing.T) {
	patience = 50 * time.Millisecond
	defer func() { patience = 15 * time.Second }()
	dir := t.TempDir()
	locks := Dir(filepath.Join(dir, "locks"))
	dead, err := locks.Take(t.Context(), gpus(1), Owner{UUID: "dead", Remains: dir}, first(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range dead.files {
		_ = f.Close()
	}
	if _, err := locks.Take(t.Context(), gpus(1), Owner{UUID: "other"}, first(1)); !errors.Is(err, device.ErrBusy) {
		t.Errorf("without an assignment: %v", err)
	}
	if s, want := locks.Holders(gpus(2)), "0: dead, whose supervisor has died, has left "+dir; s != want {
		t.Errorf("holders %q, want %q", s, want)
	}
	l, err := locks.Share(t.Context(), gpus(1), Owner{UUID: "other"})
	if err != nil || l.Shared["GPU-0"].UUID != "dead" {
		t.Fatalf("%+v, %v", l, err)
	}
}

func TestTroubleOfTheDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Dir(file).Take(t.Context(), gpus(1), Owner{}, first(1)); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file for a directory: %v", err)
	}
	locks := Dir(t.TempDir())
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("stopped")
	_, err := locks.Take(ctx, gpus(1), Owner{}, func([]device.Device) ([]device.Device, error) {
		// Somebody else wants to choose meanwhile, and is stopped.
		cancel(reason)
		if _, err := locks.Take(ctx, gpus(1), Owner{}, first(1)); !errors.Is(err, reason) {
			t.Errorf("while another chooses: %v", err)
		}
		return nil, device.ErrBusy
	})
	if !errors.Is(err, device.ErrBusy) {
		t.Error(err)
	}
	if _, err := locks.Take(t.Context(), []device.Device{{UUID: "../../etc/passwd"}}, Owner{}, first(1)); err != nil {
		t.Error(err)
	}
	if names, _ := filepath.Glob(string(locks) + "/*etc*"); len(names) != 1 {
		t.Errorf("lock files %q", names)
	}
}

// Users of the node can neither make the locks theirs nor keep them locked.
func TestOthersOnTheNode(t *testing.T) {
	const nobody = 65534
	dir := t.TempDir()
	for name, prepare := range map[string]func(path string) error{
		"their directory": func(path string) error { return errors.Join(os.Mkdir(path, 0o755), os.Chown(path, nobody, nobody)) },
		"a link":          func(path string) error { return os.Symlink(dir, path) },
		"everybody's":     func(path string) error { return errors.Join(os.Mkdir(path, 0o755), os.Chmod(path, 0o777)) },
	} {
		path := filepath.Join(t.TempDir(), "locks")
		if err := prepare(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Dir(path).Take(t.Context(), gpus(1), Owner{}, first(1)); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("made where the link leads: %v", left)
	}
	locks := Dir(filepath.Join(t.TempDir(), "locks"))
	if err := errors.Join(os.Mkdir(string(locks), 0o755), os.WriteFile(filepath.Join(string(locks), "GPU-0.lock"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := locks.Take(t.Context(), gpus(1), Owner{}, first(1)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"all.lock", "GPU-0.lock"} {
		if fi, err := os.Stat(filepath.Join(string(locks), name)); err != nil || fi.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
}
