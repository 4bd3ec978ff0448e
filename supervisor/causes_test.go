package supervisor

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/keep/keeptest"
	"crunch-oci/oci"
)

// What is at fault decides whether other nodes shall try too.
func TestWhoseFault(t *testing.T) {
	noSpace := fmt.Errorf("write /x: %w", syscall.ENOSPC)
	for _, c := range []struct {
		name   string
		change func(*world)
		state  string
		broken bool
		err    string
	}{
		{"the node, creating", func(w *world) { w.failAt("create container", errTest) }, arvados.StateQueued, false, "While creating container: no luck"},
		{"the request, creating", func(w *world) { w.failAt("create container", fmt.Errorf("cwd: %w", oci.ErrRequest)) }, arvados.StateCancelled, false, "While creating container: cwd"},
		{"the node's disk, creating", func(w *world) { w.failAt("create container", noSpace) }, arvados.StateQueued, false, "no space left on device"},
		{"the node's disk, unpacking", func(w *world) { w.failAt("unpack image", noSpace) }, arvados.StateQueued, true, "failed to load container image: write /x: no space left on device"},
		{"the image", func(w *world) { w.failAt("unpack image", errTest) }, arvados.StateCancelled, false, "failed to load container image: no luck"},
		{"the node's disk, starting", func(w *world) { w.failAt("start container", noSpace) }, arvados.StateCancelled, true, "could not start container: write /x: no space left on device"},
		{"the node's disk, waiting", func(w *world) { w.failAt("wait for container", noSpace) }, arvados.StateCancelled, true, "wait for container: write /x: no space left on device"},
		{"the command", func(w *world) {
			w.failAt("start container", &oci.StartError{Command: "./cmd", Reason: `exec: "./cmd": no such file or directory`})
		}, arvados.StateCancelled, false, "could not start container: exec: \"./cmd\": no such file or directory\nPossible causes: command \"./cmd\" is missing"},
		{"the environment", func(w *world) { w.api.record["environment"] = map[string]any{"A=B": "c"} }, arvados.StateCancelled, false, "While creating container: environment variable name"},
		{"the node's network", func(w *world) { w.sup.Network = func(bool) (Network, error) { return Network{}, errTest } }, arvados.StateQueued, false, "no luck"},
		{"the place for stdout", func(w *world) {
			w.mount("stdout", map[string]any{"kind": "file", "path": "/out/dir/file"})
			w.mount("/out/dir", map[string]any{"kind": "text", "content": "no directory"})
		}, arvados.StateCancelled, false, "While"},
		{"two image files", func(w *world) {
			w.api.record["container_image"] = w.collection("IMAGES", ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:a.tar 0:0:b.tar 0:0:c.txt\n")
		}, arvados.StateCancelled, false, "failed to load container image: cannot choose from multiple tar files in image collection: [a.tar b.tar]"},
		{"no image file", func(w *world) {
			w.api.record["container_image"] = w.collection("NONE", ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:a.txt\n./d.tar d41d8cd98f00b204e9800998ecf8427e+0 0:0:b.tar\n")
		}, arvados.StateCancelled, false, "failed to load container image: image collection does not include a .tar image file"},
		{"no image collection", func(w *world) { w.api.record["container_image"] = strings.Repeat("a", 32) + "+99" }, arvados.StateCancelled, false, "failed to load container image: open image collection"},
		{"a wrong id", func(w *world) {
			data, _ := tarball(w.t)
			w.api.record["container_image"] = w.store("WRONG", "sha256:"+strings.Repeat("0", 64)+".tar", data)
		}, arvados.StateCancelled, false, "failed to load container image: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.change(w)
			w.run()
			w.ends(c.state, nil, c.err)
			if got := len(w.broken) > 0; got != c.broken {
				t.Errorf("node marked as broken: %v", w.broken)
			}
			if got := strings.Contains(w.said(), "Error suggests node is unable to run containers: "); got != c.broken {
				t.Errorf("log:\n%s", w.said())
			}
			if !strings.Contains(w.messages(), "error in Run: "+strings.Split(w.readable(w.err.Error()), "\n")[0]) {
				t.Errorf("the log does not tell %v:\n%s", w.err, w.messages())
			}
		})
	}
}

// failAt makes an operation fail.
func (w *world) failAt(op string, err error) {
	w.fail = func(_ context.Context, name string) error {
		if name == op {
			return err
		}
		return nil
	}
}

// An image whose name promises no id is accepted, and the log says so.
func TestImageWithoutID(t *testing.T) {
	for _, name := range []string{strings.Repeat("0123456789abcdef", 4) + ".tar", "my-image.tar"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			data, _ := tarball(t)
			w.api.record["container_image"] = w.store("NAMED", name, data)
			w.run()
			w.ends(arvados.StateComplete, 0, "")
			id := strings.TrimSuffix(name, ".tar")
			if log := w.messages(); !strings.Contains(log, fmt.Sprintf("Using Docker image id %q\n", id)) || !strings.Contains(log, "has no image id to check") {
				t.Errorf("log:\n%s", log)
			}
		})
	}
}

func TestStandardStreams(t *testing.T) {
	w := newWorld(t)
	w.mount("stdin", map[string]any{"kind": "collection", "portable_data_hash": w.store("STDIN", "in", []byte("some input")), "path": "in"})
	w.mount("stdout", map[string]any{"kind": "file", "path": "/out/copy"})
	w.runtime.program = func(g *guest) int {
		if _, err := io.Copy(g.stdout, g.stdin); err != nil {
			return 1
		}
		_, _ = io.WriteString(g.stderr, "no newline")
		return 0
	}
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	out := w.outputFiles()
	if out["copy"] != "some input" {
		t.Errorf("output %q", out)
	}
	files := w.savedFiles()
	if _, ok := files["stdout.txt"]; ok {
		t.Error("stdout.txt is in the log")
	}
	if got := w.readable(files["stderr.txt"]); got != "no newline" {
		t.Errorf("stderr.txt holds %q", got)
	}
}

// A program may leave its input unread, and its output open elsewhere.
func TestInputLeftUnread(t *testing.T) {
	w := newWorld(t)
	w.mount("stdin", map[string]any{"kind": "text", "content": "x"})
	w.mount("stdin", map[string]any{"kind": "collection", "portable_data_hash": w.store("STDIN", "in", make([]byte, 1<<20)), "path": "in"})
	w.run()
	w.ends(arvados.StateComplete, 0, "")
}

// Nor is it waited for.
func TestInputThatNeverComes(t *testing.T) {
	w := newWorld(t)
	data := []byte("never seen")
	loc := w.keep.Put(data)
	w.mount("stdin", map[string]any{"kind": "collection", "portable_data_hash": w.store("STDIN", "in", data), "path": "in"})
	asked := make(chan struct{}, 100)
	w.keep.Inject(-1, func(s *keeptest.Server, rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, loc.Hash()) {
			return false
		}
		asked <- struct{}{}
		return keeptest.Hang(s, rw, r)
	})
	w.runtime.program = func(*guest) int { <-asked; return 0 }
	w.run()
	w.ends(arvados.StateComplete, 0, "")
}

// While Keep does not take log data the run goes on, and ends.
func TestKeepFails(t *testing.T) {
	w := newWorld(t)
	data := make([]byte, 100)
	w.runtime.program = func(g *guest) int {
		w.keep.Inject(-1, refuseWrites)
		_, _ = g.stdout.Write(data)
		return 0
	}
	w.run()
	w.ends(arvados.StateCancelled, 0, "write log data to Keep")
	if w.api.record["log"] != nil && w.api.collections[w.api.record["log"].(string)] == "" {
		t.Error("the record names a log that does not exist")
	}
}

// A container with access to the API gets its own token, and may say itself
// what its output is.
func TestContainerWithAPI(t *testing.T) {
	for _, sets := range []bool{true, false} {
		t.Run(fmt.Sprint("sets output ", sets), func(t *testing.T) {
			w := succeeding(t)
			w.sup.APIEnv = map[string]string{"ARVADOS_API_HOST": "api.example"}
			own := w.collection("OWN", ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:mine\n")
			w.runtime.program = func(g *guest) int {
				if sets {
					w.api.mu.Lock()
					w.api.record["output"] = own
					w.api.mu.Unlock()
				}
				if !slices.Contains(g.spec.Process.Env, "ARVADOS_API_TOKEN="+containerToken) || !slices.Contains(g.spec.Process.Env, "ARVADOS_API_HOST=api.example") {
					return 1
				}
				return 0
			}
			w.run()
			w.ends(arvados.StateComplete, 0, "")
			made := slices.ContainsFunc(w.trace, func(l string) bool { return strings.HasPrefix(l, "container POST collections") })
			if got := w.api.record["output"]; made == sets || (got == own) != sets {
				t.Errorf("it sets its output: %v, output %v, collection made: %v", sets, got, made)
			}
		})
	}
}

// Tokens must not be told, whoever puts them into an error.
func TestSecretsInErrors(t *testing.T) {
	w := newWorld(t)
	secret := strings.Split(containerToken, "/")[2]
	w.failAt("unpack image", fmt.Errorf("GET https://keep.example/?t=%s with %s", secret, containerToken))
	w.run() // checks that neither is in logs and requests
	w.ends(arvados.StateCancelled, nil, "failed to load container image: GET https://keep.example/")
	if strings.Contains(w.err.Error(), secret) {
		t.Errorf("error %v", w.err)
	}
}

// A stop request from before the beginning is honoured too.
func TestStoppedFromTheStart(t *testing.T) {
	w := newWorld(t)
	w.stop(errStop)
	w.run()
	if w.err != nil || len(w.api.states) > 0 {
		t.Errorf("error %v, states %v", w.err, w.api.states)
	}
}

// Trouble that has nothing to do with the stop request is told, but another
// node may try all the same.
func TestTroubleWhileStopped(t *testing.T) {
	w := newWorld(t)
	w.fail = func(_ context.Context, op string) error {
		if op != "unpack image" {
			return nil
		}
		w.stop(errStop)
		return errTest
	}
	w.run()
	w.ends(arvados.StateQueued, nil, "failed to load container image: no luck")
	if !strings.Contains(w.messages(), "error in Run: failed to load container image: no luck") {
		t.Errorf("log:\n%s", w.messages())
	}
}

// The log of a container that waits for another run is worth little time.
func TestRequeueDoesNotWaitForKeep(t *testing.T) {
	w := newWorld(t)
	w.failAt("create container", errTest)
	var limit time.Duration
	w.api.edit = func(c *call, _ any) {}
	w.sup.Log = w.newLog(func(ctx context.Context) {
		if at, ok := ctx.Deadline(); ok {
			limit = time.Until(at)
		}
	})
	w.run()
	w.ends(arvados.StateQueued, nil, "no luck")
	if limit <= 0 || limit > time.Minute {
		t.Errorf("the time for saving the log is %v", limit)
	}
}

// Output goes where the record wants it.
func TestStorageClasses(t *testing.T) {
	w := newWorld(t)
	w.keep.Classes = []string{"default", "archive"}
	w.api.record["output_storage_classes"] = []string{"archive"}
	data := make([]byte, 1000)
	w.runtime.program = func(g *guest) int {
		if os.WriteFile(filepath.Join(g.host("/out"), "result"), data, 0o644) != nil {
			return 1
		}
		return 0
	}
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	for _, q := range w.keep.Requests() {
		if q.Method == http.MethodPut && q.Length == int64(len(data)) {
			if got := q.Header.Get("X-Keep-Storage-Classes"); got != "archive" {
				t.Errorf("output stored with classes %q", got)
			}
			return
		}
	}
	t.Error("the output is not stored")
}

// outputFiles is the content of the output collection.
func (w *world) outputFiles() map[string]string {
	pdh, _ := w.api.record["output"].(string)
	return w.files(w.api.collections[pdh])
}

func TestScratchIsUsed(t *testing.T) {
	w := newWorld(t)
	w.runtime.program = func(g *guest) int {
		if !strings.HasPrefix(g.host("/out"), w.sup.Scratch) || !strings.HasPrefix(g.spec.Root.Path, w.sup.Scratch) {
			return 1
		}
		if os.WriteFile(filepath.Join(g.spec.Root.Path, "bin/new"), nil, 0o644) != nil {
			return 2
		}
		return 0
	}
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	if err := os.RemoveAll(w.sup.Scratch); err != nil {
		t.Error(err)
	}
}
