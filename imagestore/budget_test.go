package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// body is content that compresses well and is different for each seed.
func body(seed string, size int) string { return strings.Repeat(seed+"\n", size/(len(seed)+1)) }

// fat is an image of about size bytes on a layer that all have in common.
func fat(t *testing.T, name string, size int) imagetest.Image {
	return imagetest.Image{
		Layers: [][]byte{Tar(t, File("common", body("common", mib))), Tar(t, File("own", body(name, size)))},
		Tags:   []string{name + ":latest"},
	}
}

func budgetStore(t *testing.T, root string, budget Amount) *Store {
	t.Helper()
	s, err := Open(root, Options{Budget: budget, Warn: func(text string) { t.Log(text) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	tidyUp(t, s)
	return s
}

// put unpacks an image and gives it back. Then the store has had its time to
// keep to the budget.
func put(t *testing.T, s *Store, m imagetest.Image) {
	t.Helper()
	if err := unpack(t, s, m).Close(); err != nil {
		t.Fatal(err)
	}
	s.background.tasks.Wait()
}

// age lets images have been used long ago, the first the longest.
func age(t *testing.T, s *Store, ms ...imagetest.Image) {
	t.Helper()
	for i, m := range ms {
		at := time.Now().Add(-time.Duration(len(ms)-i) * time.Hour)
		if err := os.Chtimes(s.recordPath(strings.TrimPrefix(m.ID(), "sha256:")), at, at); err != nil {
			t.Fatal(err)
		}
	}
}

func has(t *testing.T, s *Store, m imagetest.Image) bool {
	t.Helper()
	c, err := s.Contents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(c.Images, func(i ImageInfo) bool { return i.ID.String() == m.ID() && i.Complete })
}

// What was used least recently goes, what is in use stays, and layers stay as
// long as any image needs them.
func TestBudget(t *testing.T) {
	s := budgetStore(t, t.TempDir(), Amount{Bytes: 9 * mib})
	a, b, c := fat(t, "a", 3*mib), fat(t, "b", 3*mib), fat(t, "c", 3*mib)
	put(t, s, a)
	put(t, s, b)
	age(t, s, a, b)
	// a is used again: b is now the one that was not used longest.
	again, err := s.Lookup(Key{ID: a.ID()})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	put(t, s, c)
	if !has(t, s, a) || has(t, s, b) || !has(t, s, c) {
		t.Errorf("in the store: a %v b %v c %v, want a and c", has(t, s, a), has(t, s, b), has(t, s, c))
	}
	contents, err := s.Contents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if contents.Size.Bytes > 9*mib || contents.Size.Bytes < 7*mib || contents.Size.Inodes != 3 {
		t.Errorf("size %+v", contents.Size)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	if names, _ := readNames(filepath.Join(s.root, "layers")); len(names) != 0 {
		t.Errorf("layers of no image: %q", names)
	}
}

func TestNothingInUseGoes(t *testing.T) {
	s := budgetStore(t, t.TempDir(), Amount{})
	a, b := fat(t, "a", 2*mib), fat(t, "b", 2*mib)
	snap := unpack(t, s, a)
	put(t, s, b)
	p, err := s.Prune(t.Context(), PruneOptions{To: Amount{Bytes: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Images) != 1 || p.Images[0].ID.String() != b.ID() || !p.Over || p.Layers != 1 {
		t.Errorf("%+v", p)
	}
	dir := mount(t, snap)
	if got, err := os.ReadFile(dir + "/own"); err != nil || len(got) != len(body("a", 2*mib)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	c, err := s.Contents(t.Context())
	if err != nil || len(c.Images) != 1 || !c.Images[0].InUse {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestPruneChoices(t *testing.T) {
	s := budgetStore(t, t.TempDir(), Amount{})
	a, b, c := fat(t, "a", mib), fat(t, "b", mib), fat(t, "c", mib)
	for _, m := range []imagetest.Image{a, b, c} {
		put(t, s, m)
	}
	age(t, s, a, b, c) // 3 h, 2 h, 1 h
	names := func(o PruneOptions) string {
		t.Helper()
		o.DryRun = true
		p, err := s.Prune(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, i := range p.Images {
			out = append(out, i.Tags...)
		}
		return strings.Join(out, " ")
	}
	for _, tt := range []struct {
		name string
		o    PruneOptions
		want string
	}{
		{"nothing", PruneOptions{}, ""},
		{"all", PruneOptions{All: true}, "a:latest b:latest c:latest"},
		{"old", PruneOptions{UnusedFor: 90 * time.Minute}, "a:latest b:latest"},
		{"bytes", PruneOptions{To: Amount{Bytes: 3*mib + 100_000}}, "a:latest"},
		{"inodes", PruneOptions{To: Amount{Inodes: 2}}, "a:latest b:latest"},
		{"one", PruneOptions{All: true, Only: []string{strings.TrimPrefix(b.ID(), "sha256:")}}, "b:latest"},
	} {
		if got := names(tt.o); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	for _, m := range []imagetest.Image{a, b, c} {
		if !has(t, s, m) {
			t.Error("a dry run has removed something")
		}
	}
}

// A full file system is no reason to fail as long as there are images that
// nobody uses: also where the size is known only when it has been unpacked.
func TestRoomIsMade(t *testing.T) {
	for _, compress := range []string{"", "gzip"} {
		t.Run("layers "+compress, func(t *testing.T) {
			root := smallFS(t, "size=16m")
			s := budgetStore(t, filepath.Join(root, "store"), Amount{})
			a, b, c := fat(t, "a", 6*mib), fat(t, "b", 6*mib), fat(t, "c", 6*mib)
			put(t, s, a)
			put(t, s, b)
			age(t, s, a, b)
			c.Compress = compress
			raw := Tar(t, imagetest.Docker25(c)...)
			snap, err := s.Unpack(t.Context(), Key{ID: c.ID()}, opener(raw, archive.Options{WantID: c.ID()}), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer snap.Close()
			if has(t, s, a) {
				t.Error("the image that was used least recently is still there")
			}
			if compress == "" && !has(t, s, b) {
				t.Error("more than needed was removed")
			}
		})
	}
}

// limitStore has a limit for single images.
func limitStore(t *testing.T, root string, limit Amount) *Store {
	t.Helper()
	s := budgetStore(t, root, Amount{})
	s.o.MaxImage = limit
	return s
}

// A bomb is refused before it fills the disk, and nothing of it stays.
func TestBudgetRefusesBombs(t *testing.T) {
	var es []Entry
	for i := range 3000 {
		es = append(es, File(fmt.Sprint("f", i), ""))
	}
	for _, tt := range []struct {
		name     string
		m        imagetest.Image
		budget   Amount
		says     string
		unpacked bool
	}{
		{"size known", imagetest.Image{Layers: [][]byte{Tar(t, File("x", body("x", 8*mib)))}}, Amount{Bytes: 4 * mib}, "an image may take 4MiB here", false},
		{"compressed", imagetest.Image{Layers: [][]byte{Tar(t, File("x", body("x", 8*mib)))}, Compress: "gzip"}, Amount{Bytes: 4 * mib}, "an image may take 4MiB here", true},
		{"many layers", imagetest.Image{Layers: [][]byte{Tar(t, File("x", body("x", 3*mib))), Tar(t, File("y", body("y", 3*mib)))}, Compress: "zstd"}, Amount{Bytes: 4 * mib}, "this one takes 6.0", true},
		{"entries", imagetest.Image{Layers: [][]byte{Tar(t, es...)}}, Amount{Inodes: 2000}, "layer exceeds the limit of 2000 ", true},
		{"entries of many layers", imagetest.Image{Layers: [][]byte{Tar(t, es...), Tar(t, append(es, File("more", ""))...)}}, Amount{Inodes: 4000}, "6001 files", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := limitStore(t, t.TempDir(), tt.budget)
			raw := Tar(t, imagetest.Docker25(tt.m)...)
			_, err := s.Unpack(t.Context(), Key{ID: tt.m.ID()}, opener(raw, archive.Options{WantID: tt.m.ID()}), nil)
			if !errors.Is(err, ErrLimit) || errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
			if has(t, s, tt.m) {
				t.Error("the image is in the store")
			}
			if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Fatal(err)
			}
			if names, _ := readNames(filepath.Join(s.root, "layers")); len(names) != 0 {
				t.Errorf("layers that belong to no image: %q", names)
			}
		})
	}
}

// Containers start and end while others prune: nobody loses a layer it uses.
func TestPruneBesideUsers(t *testing.T) {
	s := budgetStore(t, t.TempDir(), Amount{Bytes: 3 * mib})
	ms := []imagetest.Image{fat(t, "a", mib), fat(t, "b", mib), fat(t, "c", mib)}
	ctx, cancel := context.WithCancel(t.Context())
	var users, pruners sync.WaitGroup
	for range 2 {
		pruners.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.Prune(ctx, PruneOptions{All: true}); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 4 {
		users.Go(func() {
			for i := range 30 {
				m := ms[i%len(ms)]
				raw := Tar(t, imagetest.DockerLegacy(m, false)...)
				snap, err := s.Unpack(ctx, Key{ID: m.ID()}, opener(raw, archive.Options{WantID: m.ID()}), nil)
				if err != nil {
					t.Error(err)
					return
				}
				for _, dir := range snap.Lowerdirs() {
					if names, err := readNames(dir); err != nil || len(names) != 1 {
						t.Errorf("a layer in use: %q, %v", names, err)
					}
				}
				snap.Close()
			}
		})
	}
	users.Wait()
	cancel()
	pruners.Wait()
}

func TestDamagedRecordsArePruned(t *testing.T) {
	s := budgetStore(t, t.TempDir(), Amount{})
	put(t, s, fat(t, "a", mib))
	for digit, text := range map[string]string{"1": "", "2": "{}", "3": `{"version":1,"lower":["../../etc"],"root":"../../etc","config":"","id":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`} {
		if err := os.WriteFile(s.recordPath(strings.Repeat(digit, 64)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(s.recordPath(strings.Repeat("4", 64)), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := s.Contents(t.Context())
	if err != nil || len(c.Images) != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if names, _ := readNames(filepath.Join(s.root, "images")); len(names) != 1 {
		t.Errorf("records %q", names)
	}
}

// What an operator or a file system has put into the store is neither removed nor
// in the way of anything.
func TestForeignThingsStay(t *testing.T) {
	s := budgetStore(t, t.TempDir(), Amount{})
	m := fat(t, "a", mib)
	put(t, s, m)
	at := func(name string) string { return filepath.Join(s.root, name) }
	var want []string
	for name, mk := range map[string]func(string) error{
		"layers/lost+found":   func(p string) error { return os.MkdirAll(p+"/fs", 0o700) },
		"layers/pipe":         func(p string) error { return unix.Mkfifo(p, 0o600) },
		"layers/link":         func(p string) error { return os.Symlink("/etc", p) },
		"layers/abc.bak":      func(p string) error { return os.Mkdir(p, 0o700) },
		"images/README":       func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"images/notes.json":   func(p string) error { return os.WriteFile(p, []byte("{}"), 0o600) },
		"images/pipe.json":    func(p string) error { return unix.Mkfifo(p, 0o600) },
		"images/dir.json":     func(p string) error { return os.Mkdir(p, 0o700) },
		"images/passwd.json":  func(p string) error { return os.Symlink("/etc/passwd", p) },
		"images/._cache.json": func(p string) error { return os.WriteFile(p, nil, 0o600) },
	} {
		if err := mk(at(name)); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	s2 := budgetStore(t, s.root, Amount{}) // sweeps
	c, err := s2.Contents(t.Context())
	if err != nil || len(c.Images) != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	slices.Sort(c.Foreign)
	slices.Sort(want)
	if !slices.Equal(c.Foreign, want) {
		t.Errorf("foreign are %q, want %q", c.Foreign, want)
	}
	if _, err := s2.Prune(t.Context(), PruneOptions{All: true}); err != nil || has(t, s2, m) {
		t.Errorf("%v, or the image is still there", err)
	}
	for _, name := range want {
		if _, err := os.Lstat(at(name)); err != nil {
			t.Errorf("removed: %v", err)
		}
	}
}

func TestVerify(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, Dir("d"), File("d/f", body("x", mib)), Symlink("d/l", "/etc/passwd"), File("g", "1"))}}
	for _, tt := range []struct {
		name, script, says string
	}{
		{"untouched", `true`, ""},
		{"read", `cat fs/d/f >/dev/null; ls -R fs`, ""},
		{"content changed", `printf y | dd of=fs/d/f bs=1 seek=1000 conv=notrunc 2>/dev/null; touch -d @0 fs/d/f`, "d/f: changed at "},
		{"file removed", `rm fs/d/f`, "d: changed at "},
		{"file added", `: > fs/d/new`, "d: changed at "},
		{"mode", `chmod 4755 fs/g`, "g: changed at "},
		{"replaced by a link", `ln -sf /etc/shadow fs/g`, "changed at "},
		{"no facts", `rm facts.json`, "facts.json: "},
		{"no files", `rm -r fs`, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := budgetStore(t, t.TempDir(), Amount{})
			put(t, s, m)
			c, err := s.Contents(t.Context())
			if err != nil || len(c.Images) != 1 {
				t.Fatal(err)
			}
			id := c.Images[0].Layers[0]
			waitForTick(t)
			cmd := exec.Command("sh", "-c", tt.script)
			cmd.Dir = s.layerPath(id)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			damage, err := s.Verify(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if tt.says == "" && len(damage) != 0 || tt.says != "" && (len(damage) == 0 || !strings.Contains(damage[0].String(), tt.says)) {
				t.Errorf("%v, want %q", damage, tt.says)
			}
		})
	}
	s := budgetStore(t, t.TempDir(), Amount{})
	if d, err := s.Verify(t.Context(), strings.Repeat("0", 64)); err != nil || len(d) != 1 || d[0].Text != "missing" {
		t.Errorf("%v, %v", d, err)
	}
}

// waitForTick returns when the kernel's coarse clock, which inodes get their
// times from, has moved on.
func waitForTick(t *testing.T) {
	t.Helper()
	now := func() (ts unix.Timespec) {
		if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts); err != nil {
			t.Fatal(err)
		}
		return ts
	}
	for before := now(); now() == before; {
		time.Sleep(time.Millisecond)
	}
}
