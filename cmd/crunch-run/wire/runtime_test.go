package wire

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"crunch-oci/supervisor/joblog"
)

// What the container runtime says gets into the container's log, and no secret
// with it.
func TestRuntimeWarnings(t *testing.T) {
	tree := make(logTree)
	var stderr bytes.Buffer
	log, err := joblog.New(joblog.Config{UUID: "zzzzz-dz642-000000000000000", Tree: tree, Saver: &saver{}, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	log.Hide("v2/abcde-gj3su-000000000000000/0123456789abcdefghij")
	newRuntime("/", "1.0", log, nil).Warn("libcontainer: bad mount v2/abcde-gj3su-000000000000000/0123456789abcdefghij")
	if got := stderr.String(); !strings.Contains(got, "Z warning: libcontainer: bad mount ") || strings.Contains(got, "0123456789abcdefghij") {
		t.Errorf("stderr %q", got)
	}
	if tree["crunch-run.txt"] == "" {
		t.Error("nothing in the log")
	}
}

// logTree keeps a log in memory.
type logTree map[string]string

func (l logTree) Append(name string, p []byte) error {
	l[name] += string(p)
	return nil
}

func (l logTree) Size() int64 { return 0 }

func (l logTree) MarshalManifest(context.Context) (string, error) { return "", nil }
