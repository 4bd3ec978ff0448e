package main_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
)

// keepFaults are a cluster and what is run there while its Keep is in trouble.
type keepFaults struct {
	*cluster
	image, input string
}

const (
	faultyInput  = "all of the input\n"
	faultyOutput = "all of the output\n"
)

func newKeepFaults(t *testing.T) *keepFaults {
	c := startCluster(t, newNode(t))
	return &keepFaults{c, c.storeTools(t), c.store(t, map[string][]byte{"reads/sample.bam": []byte(faultyInput)})}
}

func (k *keepFaults) submitOne(t *testing.T, before string) string {
	return k.submit(t, k.image, sh(before+"cat /in/reads/sample.bam; printf '"+faultyOutput+"' >f"), withInput(k.input))
}

// mustBeComplete checks that nothing of a run shows in its results.
func (k *keepFaults) mustBeComplete(t *testing.T, n *node, p *process, uuid string) (logs map[string]string) {
	t.Helper()
	record := k.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if got := k.files(t, record.Output); !maps.Equal(got, map[string]string{"f": faultyOutput}) {
		t.Errorf("output %q", got)
	}
	logs = k.logs(t, record)
	if out := stamped(t, logs["stdout.txt"]); out != faultyInput {
		t.Errorf("stdout %q", out)
	}
	if record.ExitCode == nil || *record.ExitCode != 0 {
		t.Errorf("exit code %v", record.ExitCode)
	}
	return logs
}

// All Keep services are busy for longer than two rounds of attempts, from the
// moment at which the container reads its input, or its output is stored. Nobody
// but a clock could tell.
func TestKeepBusy(t *testing.T) {
	t.Parallel()
	k := newKeepFaults(t)
	uuids := map[string]string{"input": k.submitOne(t, ""), "output": k.submitOne(t, "")}
	for name, first := range map[string]string{
		"input":  http.MethodGet + " /" + hashOf(faultyInput),
		"output": http.MethodPut + " /" + hashOf(faultyOutput),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			p := newFaultProxy(t, n, k.cluster, func(string) trouble { return noTrouble })
			var mu sync.Mutex
			refused := 0 // of the first request
			p.meddleWith(func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				block, _, _ := strings.Cut(r.URL.Path, "+")
				is := r.Method+" "+block == first
				if is && refused < 3 {
					refused++
				}
				if refused == 0 || refused == 3 || len(block) != 33 {
					return false
				}
				http.Error(w, "busy", http.StatusServiceUnavailable)
				return true
			})
			uuid := uuids[name]
			k.mustBeComplete(t, n, n.start(t, run{args: []string{uuid}, env: p.env}), uuid)
			mu.Lock()
			defer mu.Unlock()
			if refused != 3 {
				t.Errorf("%s came %d times", first, refused)
			}
		})
	}
}

// The container's token expires while it runs: what it reads is an I/O error, of
// which the log says file and block, and what it wrote cannot be stored.
func TestTokenExpires(t *testing.T) {
	t.Parallel()
	k := newKeepFaults(t)
	n := newNode(t)
	p := newFaultProxy(t, n, k.cluster, func(string) trouble { return noTrouble })
	var expired atomic.Bool
	p.meddleWith(func(w http.ResponseWriter, r *http.Request) bool {
		if !expired.Load() || strings.HasSuffix(r.Header.Get("Authorization"), k.env["ARVADOS_DISPATCHER_TOKEN"]) {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":["Not logged in"]}`)
		return true
	})
	uuid := k.submitOne(t, untilTold)
	supervisor := n.start(t, run{args: []string{uuid}, env: p.env})
	insideContainer(t, n)
	expired.Store(true)
	release(t, n)
	record := k.finished(t, n, supervisor, uuid, 1, arvados.StateCancelled)
	logs := k.logs(t, record)
	if !strings.Contains(logs["stderr.txt"], "Input/output error") {
		t.Errorf("stderr.txt %q", logs["stderr.txt"])
	}
	for _, words := range []string{hashOf(faultyInput), "reads/sample.bam", "401"} {
		if !strings.Contains(logs["arv-mount.txt"], words) {
			t.Errorf("arv-mount.txt does not say %s:\n%s", words, logs["arv-mount.txt"])
		}
	}
	mustSayInOrder(t, logs["crunch-run.txt"], "error in CaptureOutput: ", hashOf(faultyOutput), "401", "Cancelled")
}

// The node's block cache is on a disk that is full, or read-only: blocks come
// from Keep, and the log says why that takes longer.
func TestKeepCacheDiskFails(t *testing.T) {
	t.Parallel()
	k := newKeepFaults(t)
	for name, tt := range map[string]struct {
		made bool // the cache has been used before
		ro   uintptr
		line string
	}{
		"full":                       {true, 0, "no space left on device"},
		"read-only":                  {true, unix.MS_RDONLY, "read-only file system"},
		"read-only, not used before": {false, unix.MS_RDONLY, "read-only file system"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			disk := t.TempDir()
			cache := filepath.Join(disk, "keep")
			if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
			if tt.made {
				if err := os.MkdirAll(filepath.Join(cache, "tmp"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if tt.ro == 0 {
				f, err := os.Create(filepath.Join(disk, "full"))
				if err != nil {
					t.Fatal(err)
				}
				for err == nil {
					_, err = f.Write(make([]byte, 4096))
				}
				f.Close()
			} else if err := unix.Mount("", disk, "", unix.MS_REMOUNT|tt.ro, ""); err != nil {
				t.Fatal(err)
			}
			n.env = append(n.env, "CRUNCH_RUN_KEEP_CACHE_DIR="+cache)
			uuid := k.submitOne(t, "")
			logs := k.mustBeComplete(t, n, k.supervise(t, n, uuid), uuid)
			if text := logs["arv-mount.txt"] + logs["crunch-run.txt"]; !strings.Contains(text, tt.line) {
				t.Errorf("no word of the cache:\n%s", text)
			}
		})
	}
}
