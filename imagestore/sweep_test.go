package imagestore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"

	"golang.org/x/sys/unix"
)

// A user of the store does not wait for the removal of what a killed one left.
func TestOpenDoesNotWaitForTheSweep(t *testing.T) {
	root := t.TempDir()
	openStore(t, root)
	// What cannot be removed makes the sweep call Warn.
	stuck := filepath.Join(root, "tmp", "stuck", "mount")
	if err := os.MkdirAll(stuck, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", stuck, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(stuck, unix.MNT_DETACH) })
	opened, warned := make(chan struct{}), make(chan string, 1)
	s, err := Open(root, Options{Warn: func(text string) {
		select {
		case <-opened:
		case <-time.After(2 * time.Minute):
			t.Error("Open waits for the sweep")
		}
		warned <- text
	}})
	if err != nil {
		t.Fatal(err)
	}
	close(opened)
	s.Close(context.Background())
	if text := <-warned; !strings.Contains(text, stuck) {
		t.Errorf("warning %q", text)
	}
}

// A store that is closed in a hurry leaves the rest to the next user.
func TestSweepIsStoppedAndGoesOn(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	leftover := filepath.Join(root, "tmp", "image-x")
	if err := os.MkdirAll(filepath.Join(leftover, "fs"), 0o700); err != nil {
		t.Fatal(err)
	}
	hurry, cancel := context.WithCancel(t.Context())
	cancel()
	s.Close(hurry)
	s.sweep()
	if _, err := os.Lstat(filepath.Join(leftover, "fs")); err != nil {
		t.Errorf("removed after Close: %v", err)
	}
	openStore(t, root)
	if _, err := os.Lstat(leftover); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("not removed by the next user: %v", err)
	}
}

// Layers that the last reboot may have damaged do not stay until somebody wants
// them again. Those in use and those known to be on the disk do.
func TestStaleLayersGo(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	images := make(map[string]imagetest.Image)
	for _, name := range []string{"stale", "used", "durable", "fresh"} {
		images[name] = imagetest.Image{Layers: [][]byte{Tar(t, File(name, "1"))}}
	}
	layer := func(name string) string { return s.layerPath(images[name].DiffIDs()[0].Encoded()) }
	for name, m := range images {
		snap := unpack(t, s, m)
		if name == "durable" {
			if err := snap.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if name != "used" {
			snap.Close()
		}
		if name == "fresh" {
			continue
		}
		// As if it had been unpacked before the machine was booted.
		file := filepath.Join(layer(name), "state.json")
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(raw), s.boot, "an earlier boot")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openStore(t, root)
	for name := range images {
		_, err := os.Lstat(layer(name))
		if gone := errors.Is(err, os.ErrNotExist); gone != (name == "stale") {
			t.Errorf("%s layer: gone is %v", name, gone)
		}
	}
	checkTidy(t, root)
}
