package wire

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/rundir"
)

// TestMain plays a supervisor that is killed if it is told to.
func TestMain(m *testing.M) {
	if root := os.Getenv("WIRE_TEST_DIE_IN"); root != "" {
		d, err := rundir.Create(context.Background(), root, "zzzzz-dz642-000000000000000", nil)
		if err == nil {
			err = d.Own(rundir.Thing{Kind: ownsDir, ID: filepath.Join(root, "..", "scratch")})
		}
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
		os.Exit(0) // as good as killed: nothing is removed
	}
	os.Exit(m.Run())
}

// deadRun leaves a runtime directory and a scratch directory.
func deadRun(t *testing.T) (root, scratch string) {
	t.Helper()
	dir := t.TempDir()
	root, scratch = filepath.Join(dir, "run"), filepath.Join(dir, "scratch")
	if err := os.MkdirAll(filepath.Join(scratch, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	dies := exec.Command(os.Args[0])
	dies.Env = append(os.Environ(), "WIRE_TEST_DIE_IN="+root)
	if out, err := dies.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return root, scratch
}

func TestSweepCleansAndSaysSo(t *testing.T) {
	root, scratch := deadRun(t)
	var stderr bytes.Buffer
	startSweep(t.Context(), root, removers, &stderr, "me").end(t.Context())
	if _, err := os.Lstat(scratch); !os.IsNotExist(err) {
		t.Errorf("scratch directory of the dead run: %v", err)
	}
	if want := "me: cleaned up after the dead supervisor of zzzzz-dz642-000000000000000\n"; stderr.String() != want {
		t.Errorf("said %q, want %q", stderr.String(), want)
	}
}

// Nobody waits for a sweep that has much to do: neither the run that it goes on
// beside, nor one that is given up.
func TestSweepDoesNotHoldTheRunUp(t *testing.T) {
	root, scratch := deadRun(t)
	begun := make(chan struct{})
	endless := rundir.Removers{ownsDir: func(ctx context.Context, _ string) error {
		close(begun)
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	var stderr bytes.Buffer
	s := startSweep(t.Context(), root, endless, &stderr, "me") // returns
	<-begun
	givenUp, cancel := context.WithCancel(t.Context())
	cancel()
	s.end(givenUp)
	if strings.Contains(stderr.String(), "cleaned") {
		t.Errorf("said %q", stderr.String())
	}
	// What is left is found by the next.
	startSweep(t.Context(), root, removers, &stderr, "me").end(t.Context())
	if _, err := os.Lstat(scratch); !os.IsNotExist(err) {
		t.Errorf("scratch directory of the dead run: %v", err)
	}
}

// What a list cleans, and what it says of a run whose container cannot be
// removed.
func TestClean(t *testing.T) {
	root, scratch := deadRun(t)
	site := config.Site{RuntimeDir: root, StoreDir: filepath.Join(root, "no-store")}
	var stderr bytes.Buffer
	if alive := Clean(t.Context(), site, &stderr); alive != nil || stderr.String() != "" {
		t.Errorf("%q %s", alive, stderr.String())
	}
	if _, err := os.Lstat(scratch); !os.IsNotExist(err) {
		t.Errorf("scratch directory of the dead run: %v", err)
	}
	if _, err := os.Lstat(site.StoreDir); !os.IsNotExist(err) {
		t.Errorf("an image store has been made: %v", err)
	}

	const uuid = "zzzzz-dz642-000000000000001"
	state := filepath.Join(root, uuid, "oci", uuid)
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		filepath.Join(root, uuid, "lock"):   "",
		filepath.Join(root, uuid, "owned"):  `{"kind":"container","id":"` + state + `"}` + "\n",
		filepath.Join(state, "cgroup.json"): "damaged",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if alive := Clean(t.Context(), site, &stderr); !slices.Equal(alive, []string{uuid}) || !strings.Contains(stderr.String(), uuid) {
		t.Errorf("%q %s", alive, stderr.String())
	}
}
