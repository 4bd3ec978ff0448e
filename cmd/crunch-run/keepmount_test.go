package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
)

// startKeepMount mounts with --read-write, beside the supervisor.
func (n *node) startKeepMount(t *testing.T, c *cluster) (p *process, dir string) {
	t.Helper()
	dir = t.TempDir()
	p = n.start(t, run{
		args: []string{"keep-mount", "--foreground", "--read-write", "--refresh-time", "1", "--mount-by-id", "by_id", dir},
		env: []string{"ARVADOS_API_HOST=" + c.env["ARVADOS_API_HOST"], "ARVADOS_API_TOKEN=" + c.env["ARVADOS_API_TOKEN"],
			"SSL_CERT_FILE=" + c.env["SSL_CERT_FILE"]},
	})
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	waitFor(t, "the mount", func() bool {
		_, err := os.Stat(filepath.Join(dir, "by_id", "README"))
		return err == nil
	})
	return p, dir
}

// Two nodes that save the same collection at the same time lose nothing of each
// other's.
func TestKeepMountSavesTogether(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	saved := c.storeFrom(t, map[string]io.Reader{"f": strings.NewReader("f")})
	want := map[string]string{"f": "f"}
	var nodes []*process
	var wg sync.WaitGroup
	for i := range 2 {
		p, dir := n.startKeepMount(t, c)
		nodes = append(nodes, p)
		who := string(rune('a' + i))
		for j := range 10 {
			want[fmt.Sprint(who, j)] = who
		}
		wg.Go(func() {
			for j := range 10 {
				if err := os.WriteFile(filepath.Join(dir, "by_id", saved.UUID, fmt.Sprint(who, j)), []byte(who), 0o666); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := c.user.GetCollection(t.Context(), saved.UUID)
	if err != nil {
		t.Fatal(err)
	}
	if files := c.files(t, got.PortableDataHash); !maps.Equal(files, want) {
		t.Errorf("on record: %q, want %q", files, want)
	}
	for _, p := range nodes {
		p.signal(t, syscall.SIGTERM)
		if code := p.wait(t); code != 0 {
			t.Errorf("a mount ended with %d: %s", code, p.stderr.String())
		}
	}
}

// What is written to a collection of the cluster through a mount is on its record
// when the file is closed, beside what others have saved meanwhile.
func TestKeepMountSaves(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	saved := c.storeFrom(t, map[string]io.Reader{"f": bytes.NewReader([]byte("old\n")), "d/g": bytes.NewReader([]byte("g\n"))})
	p, dir := n.startKeepMount(t, c)
	top := filepath.Join(dir, "by_id", saved.UUID)
	writeFile(t, filepath.Join(top, "f"), []byte("new\n"))
	record := func() arvados.Collection {
		t.Helper()
		got, err := c.user.GetCollection(t.Context(), saved.UUID)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if text := c.file(t, record().PortableDataHash, "f"); text != "new\n" {
		t.Errorf("on record after close: %q", text)
	}
	// Somebody else adds a file.
	theirs, err := c.user.GetCollection(t.Context(), c.store(t, map[string][]byte{"theirs": []byte("theirs\n")}))
	if err != nil {
		t.Fatal(err)
	}
	both := record().ManifestText + theirs.ManifestText
	if _, err := c.user.UpdateCollection(t.Context(), saved.UUID, map[string]any{"manifest_text": both}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(top, "d/g"), filepath.Join(top, "g")); err != nil {
		t.Fatal(err)
	}
	files := c.files(t, record().PortableDataHash)
	for name, want := range map[string]string{"f": "new\n", "g": "g\n", "theirs": "theirs\n"} {
		if files[name] != want {
			t.Errorf("on record: %q, want %s with %q", files, name, want)
		}
	}
	// A collection that is gone cannot be saved, and that is said.
	gone := c.storeFrom(t, map[string]io.Reader{"f": bytes.NewReader([]byte("old\n"))})
	if _, err := os.Stat(filepath.Join(dir, "by_id", gone.UUID, "f")); err != nil {
		t.Fatal(err)
	}
	if err := c.user.Call(t.Context(), "DELETE", "collections/"+gone.UUID, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "by_id", gone.UUID, "f"), []byte("x"), 0o666); !errors.Is(err, syscall.EIO) {
		t.Errorf("close of a file of a collection in the trash: %v", err)
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 1 || !strings.Contains(p.stderr.String(), "collection "+gone.UUID+": what was changed last is lost") {
		t.Errorf("the mount ended with %d", code)
	}
}
