package rundir

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/internal/hostdir"
)

const uuid = "zzzzz-dz642-000000000000000"

// recorder removes nothing and remembers what it was asked to.
func recorder(removed *[]string) Removers {
	return Removers{"dir": func(_ context.Context, id string) error {
		*removed = append(*removed, id)
		return os.RemoveAll(id)
	}}
}

func mustCreate(t *testing.T, root string, rm Removers) *Dir {
	t.Helper()
	d, err := Create(t.Context(), root, uuid, rm)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOneRunAtATime(t *testing.T) {
	root := filepath.Join(t.TempDir(), "run")
	d := mustCreate(t, root, nil)
	if _, err := Create(t.Context(), root, uuid, nil); !errors.Is(err, ErrRunning) {
		t.Errorf("second run: %v, want ErrRunning", err)
	}
	if cleaned, err := Sweep(t.Context(), root, nil); err != nil || len(cleaned) != 0 {
		t.Errorf("sweep touched a living run: %v %v", cleaned, err)
	}
	if err := d.Remove(nil); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := mustCreate(t, root, nil).Remove(nil); err != nil {
		t.Error(err)
	}
}

// A child that inherited the lock file keeps the directory locked after the
// supervisor's own descriptor is gone; its death frees it.
func TestChildHoldsTheLock(t *testing.T) {
	root := t.TempDir()
	d := mustCreate(t, root, nil)
	child := exec.Command("cat")
	child.ExtraFiles = []*os.File{d.LockFile()}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if err := d.LockFile().Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(t.Context(), root, uuid, nil); !errors.Is(err, ErrRunning) {
		t.Errorf("child alive: %v, want ErrRunning", err)
	}
	_ = stdin.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if cleaned, err := Sweep(t.Context(), root, nil); err != nil || !reflect.DeepEqual(cleaned, []string{uuid}) {
		t.Errorf("child dead: sweep %v %v", cleaned, err)
	}
}

// die leaves a directory as a killed supervisor does.
func die(t *testing.T, d *Dir) {
	t.Helper()
	if err := errors.Join(d.alive.Close(), d.lock.Close()); err != nil {
		t.Fatal(err)
	}
}

// The FUSE server dies a moment after its supervisor. A new run that comes in
// between waits for it.
func TestNewRunWaitsForTheDying(t *testing.T) {
	root := t.TempDir()
	d := mustCreate(t, root, nil)
	if err := d.alive.Close(); err != nil { // the supervisor's death; its child has the lock
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Create(ctx, root, uuid, nil); !errors.Is(err, errCleaning) || errors.Is(err, ErrRunning) {
		t.Errorf("with a dying child: %v", err)
	}
	if cleaned, err := Sweep(t.Context(), root, nil); err != nil || len(cleaned) != 0 {
		t.Errorf("sweep: %v %v", cleaned, err)
	}
	created := make(chan error, 1)
	go func() {
		next, err := Create(t.Context(), root, uuid, nil)
		if err == nil {
			err = next.Remove(nil)
		}
		created <- err
	}()
	if err := d.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-created; err != nil {
		t.Error(err)
	}
}

func TestDeadRunIsCleaned(t *testing.T) {
	for name, clean := range map[string]func(root string, rm Removers) error{
		"by a sweep": func(root string, rm Removers) error {
			_, err := Sweep(t.Context(), root, rm)
			return err
		},
		"by the next run of the container": func(root string, rm Removers) error {
			d, err := Create(t.Context(), root, uuid, rm)
			if err != nil {
				return err
			}
			return d.Remove(rm)
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, elsewhere := t.TempDir(), t.TempDir()
			first, second := filepath.Join(elsewhere, "first"), filepath.Join(elsewhere, "second\n")
			d := mustCreate(t, root, nil)
			for _, p := range []string{first, second} {
				if err := d.Own(Thing{"dir", p}); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.MkdirAll(filepath.Join(first, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(d.Path(), "bundle", "rootfs"), 0o700); err != nil {
				t.Fatal(err)
			}
			// The last record was cut short by the kill.
			if _, err := d.owned.WriteString(`{"kind":"dir","id":"/et`); err != nil {
				t.Fatal(err)
			}
			die(t, d)
			var removed []string
			if err := clean(root, recorder(&removed)); err != nil {
				t.Fatal(err)
			}
			if want := []string{second, first}; !reflect.DeepEqual(removed, want) {
				t.Errorf("removed %q, want %q", removed, want)
			}
			if left, _ := os.ReadDir(root); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// Killed after it has made its directory, or has removed the lock file, a
// supervisor leaves an empty directory.
func TestEmptyDirectoryGoes(t *testing.T) {
	root := t.TempDir()
	for _, p := range []string{filepath.Join(root, "zzzzz-dz642-empty"), filepath.Join(root, "other", "x")} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if cleaned, err := Sweep(t.Context(), root, nil); err != nil || len(cleaned) != 0 {
		t.Errorf("sweep: %v %v", cleaned, err)
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("left are %v (%v), want what no run has made", left, err)
	}
}

// A sweep that is stopped leaves a run that the next sweep finds.
func TestStoppedSweepGoesOn(t *testing.T) {
	root, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "scratch")
	rm := Removers{"dir": hostdir.RemoveAll}
	d := mustCreate(t, root, nil)
	if err := d.Own(Thing{"dir", elsewhere}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{filepath.Join(elsewhere, "a", "b"), filepath.Join(d.Path(), "bundle", "rootfs")} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	die(t, d)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("SIGTERM")
	stopping := Removers{"dir": func(ctx context.Context, id string) error { cancel(stop); return rm["dir"](ctx, id) }}
	if cleaned, err := Sweep(ctx, root, stopping); !errors.Is(err, stop) || len(cleaned) != 0 {
		t.Errorf("stopped sweep: %v %v", cleaned, err)
	}
	if cleaned, err := Sweep(t.Context(), root, rm); err != nil || len(cleaned) != 1 {
		t.Errorf("next sweep: %v %v", cleaned, err)
	}
	if _, err := os.Lstat(elsewhere); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("scratch directory: %v", err)
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFailedCleanUpIsTriedAgain(t *testing.T) {
	root := t.TempDir()
	d := mustCreate(t, root, nil)
	if err := d.Own(Thing{"dir", "/x"}); err != nil {
		t.Fatal(err)
	}
	die(t, d)
	boom := errors.New("device busy")
	_, err := Sweep(t.Context(), root, Removers{"dir": func(context.Context, string) error { return boom }})
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), uuid) || !strings.Contains(err.Error(), "/x") {
		t.Errorf("error %v names neither run nor thing", err)
	}
	ok := false
	if _, err := Sweep(t.Context(), root, Removers{"dir": func(context.Context, string) error { ok = true; return nil }}); err != nil || !ok {
		t.Errorf("second sweep: %v, tried %v", err, ok)
	}
}

// cleaner is a remover that tells when it is at work, and goes on when it is told.
func cleaner() (rm Removers, begun, proceed chan struct{}) {
	begun, proceed = make(chan struct{}), make(chan struct{})
	return Removers{"dir": func(context.Context, string) error {
		close(begun)
		<-proceed
		return nil
	}}, begun, proceed
}

// A container's new run waits while somebody removes what is left of the one
// before: a sweep, or the end of that run itself. Then it takes over.
func TestNewRunWaitsForTheCleaner(t *testing.T) {
	for name, clean := range map[string]func(d *Dir, rm Removers) error{
		"a sweep": func(d *Dir, rm Removers) error {
			die(t, d)
			_, err := Sweep(t.Context(), filepath.Dir(d.Path()), rm)
			return err
		},
		"the previous run": func(d *Dir, rm Removers) error { return d.Remove(rm) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			d := mustCreate(t, root, nil)
			if err := d.Own(Thing{"dir", "/x"}); err != nil {
				t.Fatal(err)
			}
			rm, begun, proceed := cleaner()
			cleaned := make(chan error, 1)
			go func() { cleaned <- clean(d, rm) }()
			<-begun

			if others, err := Sweep(t.Context(), root, rm); err != nil || len(others) != 0 {
				t.Errorf("a second sweep cleaned %v, error %v", others, err)
			}
			stopped, cancel := context.WithCancelCause(t.Context())
			stop := errors.New("SIGTERM")
			cancel(stop)
			if _, err := Create(stopped, root, uuid, nil); !errors.Is(err, stop) || errors.Is(err, ErrRunning) {
				t.Errorf("stopped while waiting: %v", err)
			}
			created := make(chan error, 1)
			go func() {
				d, err := Create(t.Context(), root, uuid, nil)
				if err == nil {
					_, err = Create(t.Context(), root, uuid, nil)
					if errors.Is(err, ErrRunning) {
						err = d.Remove(nil)
					}
				}
				created <- err
			}()
			select {
			case err := <-created:
				t.Errorf("the new run did not wait: %v", err)
			case <-time.After(3 * cleaningPoll):
			}
			close(proceed)
			if err := <-cleaned; err != nil {
				t.Error(err)
			}
			if err := <-created; err != nil {
				t.Error(err)
			}
		})
	}
}

// Sweepers and new runs of the same container at once: never two owners, never
// an error but ErrRunning, and that only because of a run.
func TestConcurrent(t *testing.T) {
	root := t.TempDir()
	var owner sync.Mutex
	for range 200 {
		die(t, mustCreate(t, root, nil))
		var sweepers sync.WaitGroup
		for range 3 {
			sweepers.Go(func() {
				if _, err := Sweep(t.Context(), root, nil); err != nil {
					t.Error(err)
				}
			})
		}
		d := mustCreate(t, root, nil)
		sweepers.Wait()
		if err := d.Remove(nil); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				d, err := Create(t.Context(), root, uuid, nil)
				if errors.Is(err, ErrRunning) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if !owner.TryLock() {
					t.Error("two owners")
				} else {
					runtime.Gosched()
					owner.Unlock()
				}
				if err := d.Remove(nil); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 100 {
				if _, err := Sweep(t.Context(), root, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "/etc"} {
		if d, err := Create(t.Context(), t.TempDir(), name, nil); err == nil {
			t.Errorf("%q accepted as %s", name, d.Path())
		}
	}
}
