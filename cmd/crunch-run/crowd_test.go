package main_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// TestCrowd has many users wait for their work at once, each with a client
// process, and as many supervisors and containers run at the same moment: each
// user gets the exit status, the output and the log of his own.
// CRUNCH_RUN_TEST_LONG=1 makes it 50 of each instead of 6.
func TestCrowd(t *testing.T) {
	t.Parallel()
	count, watchdog := 6, patience
	if os.Getenv("CRUNCH_RUN_TEST_LONG") != "" {
		count, watchdog = 50, 15*time.Minute
	}
	n := newNode(t)
	c := startDispatching(t, n, filepath.Join(n.dir, "cluster"), count)
	image := c.storeTools(t)
	env := []string{"ARVADOS_API_HOST=" + c.env["ARVADOS_API_HOST"], "ARVADOS_API_TOKEN=" + c.env["ARVADOS_API_TOKEN"], "SSL_CERT_FILE=" + c.env["SSL_CERT_FILE"]}
	began := time.Now()
	var clients []*process
	for i := range count {
		// Nobody goes on before all are there.
		script := fmt.Sprintf("echo >waiting; until test -e go; do sleep 0.2; done; rm go waiting; echo output %d >f; echo log %d; exit %d", i, i, i%3)
		clients = append(clients, n.start(t, run{env: env, args: []string{
			"submit", "--image", image, "--no-reuse", "--ram", "64MiB", "--wait", "--json", "--", "sh", "-c", script}}))
	}
	deadline := time.NewTimer(watchdog)
	defer deadline.Stop()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for len(n.found("waiting")) < count {
		for i, p := range clients {
			select {
			case <-p.done:
				t.Fatalf("client %d has ended with %d: %s", i, p.code, p.stderr.String())
			default:
			}
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatalf("only %d containers are running", len(n.found("waiting")))
		}
	}
	var running []arvados.Container
	if err := c.dispatch.List(t.Context(), "containers", map[string]any{
		"filters": [][]string{{"state", "=", "Running"}}, "select": []string{"uuid"}, "limit": 1000}, &running); err != nil {
		t.Fatal(err)
	}
	if len(running) != count {
		t.Errorf("%d containers are Running, want %d", len(running), count)
	}
	t.Logf("%d containers at once after %.1f s", count, time.Since(began).Seconds())
	for _, waiting := range n.found("waiting") {
		if err := os.WriteFile(filepath.Join(filepath.Dir(waiting), "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, p := range clients {
		select {
		case <-p.done:
		case <-deadline.C:
			t.Fatalf("client %d has not ended", i)
		}
		if p.code != i%3 {
			t.Errorf("client %d ended with %d, want %d: %s", i, p.code, i%3, p.stderr.String())
			continue
		}
		var printed struct {
			Request struct {
				State  string `json:"state"`
				Log    string `json:"log_uuid"`
				Output string `json:"output_uuid"`
			} `json:"container_request"`
		}
		if err := json.Unmarshal([]byte(p.stdout.String()), &printed); err != nil {
			t.Fatalf("client %d printed %q: %v", i, p.stdout.String(), err)
		}
		r := printed.Request
		if r.State != arvados.RequestFinal {
			t.Errorf("client %d: request is %s", i, r.State)
		}
		if files := c.files(t, r.Output); len(files) != 1 || files["f"] != fmt.Sprintf("output %d\n", i) {
			t.Errorf("client %d: output %q", i, files)
		}
		if log := stamped(t, c.file(t, r.Log, "stdout.txt")); log != fmt.Sprintf("log %d\n", i) {
			t.Errorf("client %d: log %q", i, log)
		}
	}
	t.Logf("all ended after %.1f s", time.Since(began).Seconds())
}

// found are the files of that name below the scratch directories of the node's
// supervisors.
func (n *node) found(name string) (paths []string) {
	// What cannot be read is being removed.
	_ = filepath.WalkDir(n.tmp(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == name {
			paths = append(paths, path)
		}
		return nil
	})
	return paths
}
