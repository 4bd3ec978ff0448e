package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// Signatures that have ended, or are about to, are replaced without the reader
// noticing, also in a file that stays open.
func TestSignatureRefresh(t *testing.T) {
	w := newWorld(t)
	a, b := w.put([]byte("aaa")), w.put([]byte("bbb"))
	manifest := ". " + a + " " + b + " 0:3:a 3:3:b\n"
	pdh := w.publish(manifest, time.Now().Add(-time.Minute))
	gets := watchGets(w)
	w.mount()
	f, err := os.Open(w.path("by_id", pdh, "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The first manifest is useless; the next one is good.
	w.publish(manifest, time.Now().Add(time.Hour))
	if text, err := os.ReadFile(w.path("by_id", pdh, "a")); err != nil || string(text) != "aaa" {
		t.Errorf("expired signature: %q %v\n%s", text, err, w.stderr)
	}
	if text, err := io.ReadAll(f); err != nil || string(text) != "bbb" {
		t.Errorf("file opened before: %q %v\n%s", text, err, w.stderr)
	}
	if n := w.requests(pdh); n != 2 {
		t.Errorf("%d API requests, want 2", n)
	}
	if gets.refused() {
		t.Error("Keep was asked with a signature that had expired")
	}
}

// Half way through their life signatures are replaced in the background.
func TestSignatureRefreshAhead(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("aaa"))
	pdh := w.publish(". "+loc+" 0:1:a 1:1:b 2:1:c\n", time.Now().Add(time.Hour))
	w.mountEnv([]string{"MOUNT_TEST_TTL=1"})
	waitFor(t, "a second request", func() bool {
		if _, err := os.ReadFile(w.path("by_id", pdh, "a")); err != nil {
			t.Fatal(err)
		}
		return w.requests(pdh) > 1
	})
	if strings.Contains(w.stderr.String(), "ERROR") {
		t.Errorf("log:\n%s", w.stderr)
	}
}

// So are signatures that Keep refuses although they look good.
func TestRefusedSignature(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("aaa"))
	manifest := ". " + loc + " 0:3:a\n"
	pdh := keep.PortableDataHash(manifest)
	bad := keep.Signer{Key: "other", TTL: time.Hour}.SignManifest(manifest, token, time.Now().Add(time.Hour))
	w.answer(pdh, Record{PortableDataHash: pdh, ManifestText: bad})
	w.mount()
	if _, err := os.Stat(w.path("by_id", pdh, "a")); err != nil {
		t.Fatal(err)
	}
	w.publish(manifest, time.Now().Add(time.Hour))
	if text, err := os.ReadFile(w.path("by_id", pdh, "a")); err != nil || string(text) != "aaa" {
		t.Errorf("%q %v\n%s", text, err, w.stderr)
	}
}

// A signature that Keep refuses is replaced once, not for ever.
func TestRefusedSignatureStays(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("aaa"))
	manifest := ". " + loc + " 0:3:a\n"
	pdh := keep.PortableDataHash(manifest)
	bad := keep.Signer{Key: "other", TTL: time.Hour}.SignManifest(manifest, token, time.Now().Add(time.Hour))
	w.answer(pdh, Record{PortableDataHash: pdh, ManifestText: bad})
	w.mount()
	for range 3 {
		if _, err := os.ReadFile(w.path("by_id", pdh, "a")); !errors.Is(err, syscall.EIO) {
			t.Errorf("refused signature: %v", err)
		}
	}
	w.waitLog(regexp.MustCompile("Unhandled exception during FUSE operation: .*HTTP 400"))
	if n := w.requests(pdh); n > 3 {
		t.Errorf("%d API requests", n)
	}
	noSecrets(t, w)
}

// A collection named by UUID follows its record; what is open stays.
func TestUUIDRefresh(t *testing.T) {
	w := newWorld(t)
	uuid := "zzzzz-4zz18-aaaaaaaaaaaaaaa"
	la, lb := w.put([]byte("old")), w.put([]byte("newer"))
	publish := func(manifest string) {
		m := w.signer.SignManifest(manifest, token, time.Now().Add(time.Hour))
		w.answer(uuid, Record{PortableDataHash: keep.PortableDataHash(manifest), ManifestText: m, ModifiedAt: time.Now()})
	}
	publish(". " + la + " 0:3:f 0:3:gone\n./d " + la + " 0:3:x\n")
	w.mount("--refresh-time", "0.05")
	top := w.path("by_uuid", uuid)
	fd, err := unix.Open(top, unix.O_DIRECTORY, 0) // as a bind mount holds it
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	old, err := os.Open(top + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	publish(". " + lb + " 0:5:f\n./d " + lb + " 0:5:x\n./e " + lb + " 0:5:y\n")
	waitFor(t, "the new content", func() bool {
		text, err := os.ReadFile(top + "/f")
		return err == nil && string(text) == "newer"
	})
	waitFor(t, "a removed file to go", func() bool { return unix.Faccessat(fd, "gone", 0, 0) == unix.ENOENT })
	for _, p := range []string{"/d/x", "/e/y"} {
		if text, err := os.ReadFile(top + p); err != nil || string(text) != "newer" {
			t.Errorf("%s: %q %v", p, text, err)
		}
	}
	if text, err := io.ReadAll(old); err != nil || string(text) != "old" {
		t.Errorf("file opened before: %q %v", text, err)
	}
	// While the API server is down, what is known stays.
	w.answerText(uuid, "503")
	waitFor(t, "a failed refresh", func() bool {
		if text, err := os.ReadFile(top + "/f"); err != nil || string(text) != "newer" {
			t.Fatalf("API down: %q %v", text, err)
		}
		return strings.Contains(w.stderr.String(), "cannot be read again")
	})
}

// A file of a content that the collection no longer has stays readable for longer
// than its signatures last.
func TestReplacedContentOutlivesSignatures(t *testing.T) {
	uuid := "zzzzz-4zz18-aaaaaaaaaaaaaaa"
	for _, how := range []string{"replaced", "deleted", "replaced, read-only", "deleted, read-only"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			manifest := ". " + w.put([]byte("old")) + " 0:3:f\n"
			signed := w.signer.SignManifest(manifest, token, time.Now().Add(-time.Minute))
			w.answer(uuid, Record{PortableDataHash: keep.PortableDataHash(manifest), ManifestText: signed})
			args := []string{"--refresh-time", "0.05"}
			if strings.HasSuffix(how, "only") {
				args = append(args, "--read-only")
			}
			w.mount(args...)
			f, err := os.Open(w.path("by_uuid", uuid, "f"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w.publish(manifest, time.Now().Add(time.Hour)) // by its hash
			if strings.HasPrefix(how, "replaced") {
				w.answer(uuid, Record{PortableDataHash: "d41d8cd98f00b204e9800998ecf8427e+0"})
				waitFor(t, "the new content", func() bool { _, err := os.Stat(w.path("by_uuid", uuid, "f")); return err != nil })
			} else if err := os.Remove(filepath.Join(w.api, uuid)); err != nil {
				t.Fatal(err)
			}
			if text, err := io.ReadAll(f); err != nil || string(text) != "old" {
				t.Errorf("%q %v\n%s", text, err, w.stderr)
			}
		})
	}
}

// Blocks of another cluster are asked for with the signatures that it gave, and
// these are renewed in time like our own.
func TestRemoteBlocks(t *testing.T) {
	w := newWorld(t)
	srv := &keeptest.Server{Signer: keep.Signer{Key: "local", TTL: time.Hour}}
	w.url = srv.Start(t).URL
	remote := srv.PutRemote([]byte("far away"))
	sign := func(expiry time.Time) string {
		return fmt.Sprintf("%s+%d+Rzbbbb-%040d@%08x", remote.Hash(), remote.Size(), 7, expiry.Unix())
	}
	pdh := keep.PortableDataHash(". " + sign(time.Now()) + " 0:8:f 0:3:g\n")
	w.answer(pdh, Record{PortableDataHash: pdh, ManifestText: ". " + sign(time.Now().Add(time.Hour)) + " 0:8:f 0:3:g\n"})
	w.mount()
	if text, err := os.ReadFile(w.path("by_id", pdh, "f")); err != nil || string(text) != "far away" {
		t.Fatalf("%q %v\n%s", text, err, w.stderr)
	}
	requests := srv.Requests()
	if got := requests[len(requests)-1].Path; !strings.Contains(got, "+Rzbbbb-") {
		t.Errorf("asked for %s", got)
	}
	// Of a manifest with signatures at their end another one is fetched.
	other := keep.PortableDataHash(". " + sign(time.Now()) + " 0:8:other\n")
	w.answer(other, Record{PortableDataHash: other, ManifestText: ". " + sign(time.Now().Add(time.Second)) + " 0:8:other\n"})
	if _, err := os.Stat(w.path("by_id", other, "other")); err != nil {
		t.Fatal(err)
	}
	w.answer(other, Record{PortableDataHash: other, ManifestText: ". " + sign(time.Now().Add(time.Hour)) + " 0:8:other\n"})
	if text, err := os.ReadFile(w.path("by_id", other, "other")); err != nil || string(text) != "far away" {
		t.Errorf("%q %v\n%s", text, err, w.stderr)
	}
	if n := w.requests(other); n != 2 {
		t.Errorf("%d API requests, want 2", n)
	}
}
