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
)

const uuid = "zzzzz-dz642-000000000000000"

// recorder removes nothing and remembers what it was asked to.
func recorder(removed *[]string) Removers {
	return Removers{"dir": func(id string) error {
		*removed = append(*removed, id)
		return os.RemoveAll(id)
	}}
}

func mustCreate(t *testing.T, root string, rm Removers) *Dir {
	t.Helper()
	d, err := Create(root, uuid, rm)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOneRunAtATime(t *testing.T) {
	root := filepath.Join(t.TempDir(), "run")
	d := mustCreate(t, root, nil)
	if _, err := Create(root, uuid, nil); !errors.Is(err, ErrRunning) {
		t.Errorf("second run: %v, want ErrRunning", err)
	}
	if cleaned, err := Sweep(context.Background(), root, nil); err != nil || len(cleaned) != 0 {
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
	if _, err := Create(root, uuid, nil); !errors.Is(err, ErrRunning) {
		t.Errorf("child alive: %v, want ErrRunning", err)
	}
	_ = stdin.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if cleaned, err := Sweep(context.Background(), root, nil); err != nil || !reflect.DeepEqual(cleaned, []string{uuid}) {
		t.Errorf("child dead: sweep %v %v", cleaned, err)
	}
}

// die leaves a directory as a killed supervisor does.
func die(t *testing.T, d *Dir) {
	t.Helper()
	if err := d.lock.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDeadRunIsCleaned(t *testing.T) {
	for name, clean := range map[string]func(root string, rm Removers) error{
		"by a sweep": func(root string, rm Removers) error {
			_, err := Sweep(context.Background(), root, rm)
			return err
		},
		"by the next run of the container": func(root string, rm Removers) error {
			d, err := Create(root, uuid, rm)
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

func TestFailedCleanUpIsTriedAgain(t *testing.T) {
	root := t.TempDir()
	d := mustCreate(t, root, nil)
	if err := d.Own(Thing{"dir", "/x"}); err != nil {
		t.Fatal(err)
	}
	die(t, d)
	boom := errors.New("device busy")
	_, err := Sweep(context.Background(), root, Removers{"dir": func(string) error { return boom }})
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), uuid) || !strings.Contains(err.Error(), "/x") {
		t.Errorf("error %v names neither run nor thing", err)
	}
	ok := false
	if _, err := Sweep(context.Background(), root, Removers{"dir": func(string) error { ok = true; return nil }}); err != nil || !ok {
		t.Errorf("second sweep: %v, tried %v", err, ok)
	}
}

// Sweepers and new runs of the same container at once: never two owners, never
// an error but ErrRunning.
func TestConcurrent(t *testing.T) {
	root := t.TempDir()
	var owner sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				d, err := Create(root, uuid, nil)
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
				if _, err := Sweep(context.Background(), root, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "/etc"} {
		if d, err := Create(t.TempDir(), name, nil); err == nil {
			t.Errorf("%q accepted as %s", name, d.Path())
		}
	}
}
