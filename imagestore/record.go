package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"crunch-oci/imagestore/archive"
	"crunch-oci/internal/regular"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// record is images/<name>.json. It is written once, after everything that it
// names; a damaged one counts as none. The file's time tells when the image was
// last used.
type record struct {
	Version int           `json:"version"`
	Key     Key           `json:"key"`
	ID      digest.Digest `json:"id"`
	Names   []string      `json:"names,omitempty"`
	Config  []byte        `json:"config"` // base64: the digest is that of its bytes
	Layers  []string      `json:"layers"` // diff IDs in hexadecimal, the lowest first
	Lower   []string      `json:"lower"`  // directories below layers/, the topmost first
	Root    string        `json:"root"`   // that of Lower which describes the root directory
}

const recordVersion = 1

func (s *Store) recordPath(name string) string {
	return filepath.Join(s.root, "images", name+".json")
}

func (s *Store) readRecord(key Key) (record, error) {
	name, err := key.name()
	if err != nil {
		return record{}, err
	}
	r, err := s.loadRecord(name)
	if err == nil && r.Key != key {
		err = ErrNotFound
	}
	return r, err
}

// loadRecord reads a record by its own name.
func (s *Store) loadRecord(name string) (record, error) {
	raw, err := readRegular(s.recordPath(name))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, regular.ErrNot) {
		return record{}, ErrNotFound
	}
	if err != nil {
		return record{}, fmt.Errorf("image store: %w", err)
	}
	var r record
	if json.Unmarshal(raw, &r) != nil || r.Version != recordVersion ||
		digest.FromBytes(r.Config) != r.ID || !slices.Contains(r.Lower, r.Root) ||
		slices.ContainsFunc(r.Lower, func(id string) bool { return !layerName.MatchString(id) }) {
		return record{}, ErrNotFound
	}
	return r, nil
}

// What directories below layers, and records without their ending, are called.
// Everything else there is not the store's, and left alone.
var (
	layerName  = regexp.MustCompile(`^(cover-)?[0-9a-f]{64}$`)
	recordFile = regexp.MustCompile(`^(source-)?[0-9a-f]{64}$`)
)

// readRegular reads a file of the store. Whatever has taken its place, it neither
// waits nor follows a link.
func readRegular(path string) ([]byte, error) {
	f, err := regular.Open(path, os.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// writeRecord puts r in place, by way of the claimed directory of its image.
func (s *Store) writeRecord(c *claim, name string, r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(c.path, "record")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.recordPath(name))
}

// facts is layers/<id>/facts.json: what must be known about a layer to put it
// on top of others. Paths are bytes, not text.
type facts struct {
	OpaqueRoot   bool     `json:"opaque_root,omitempty"`
	ImplicitRoot bool     `json:"implicit_root,omitempty"`
	Implicit     [][]byte `json:"implicit,omitempty"`  // but for the root
	Whiteouts    [][]byte `json:"whiteouts,omitempty"` // directories that hold some, but for the root
	Entries      int64    `json:"entries"`
	Bytes        int64    `json:"bytes"`
}

func (s *Store) readFacts(id string) (facts, error) {
	var f facts
	raw, err := readRegular(filepath.Join(s.layerPath(id), "facts.json"))
	if err != nil {
		return f, err
	}
	return f, json.Unmarshal(raw, &f)
}

// state is layers/<id>/state.json: how long the layer may be believed.
type state struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"`    // unpacked since this boot, or
	Durable bool   `json:"durable"` // known to be on the disk
}

func writeJSON(path string, v any, sync bool) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// use is a layer held for use: its directory, open with a shared lock.
type use struct {
	id  string
	dir *os.File
}

func (u *use) close() { _ = u.dir.Close() }

// errStale says that a layer has been there since before the last boot and may
// have lost parts of itself then.
var errStale = errors.New("layer may not have survived the last reboot")

// use takes a layer into use. It fails with os.ErrNotExist where there is none,
// with errStale where there is one that is not to be believed, or no directory.
func (s *Store) use(id string) (*use, error) {
	// This does not wait for long: a holder of an exclusive lock renames the directory
	// at once, or only looks whether anybody uses it.
	dir, err := lockDir(s.layerPath(id), unix.LOCK_SH)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, errStale
	}
	if err != nil {
		return nil, err
	}
	if !s.believed(id) {
		_ = dir.Close()
		return nil, errStale
	}
	return &use{id: id, dir: dir}, nil
}

// believed tells whether a layer, if there is one, is to be used.
func (s *Store) believed(id string) bool {
	var st state
	return readJSON(filepath.Join(s.layerPath(id), "state.json"), &st) == nil && st.Version == recordVersion &&
		(st.Durable || st.Boot == s.boot)
}

// useAll takes all of them or none.
func (s *Store) useAll(ids []string) ([]*use, error) {
	var out []*use
	for _, id := range ids {
		u, err := s.use(id)
		if err != nil {
			closeAll(out)
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}

func closeAll(uses []*use) {
	for _, u := range uses {
		u.close()
	}
}

// Lookup gives the image if the store has it, without reading a tarball;
// otherwise ErrNotFound.
func (s *Store) Lookup(key Key) (*Snapshot, error) {
	r, err := s.readRecord(key)
	if err != nil {
		return nil, err
	}
	uses, err := s.useAll(r.Lower)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errStale) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	snap, err := s.snapshot(r, uses)
	if err != nil {
		closeAll(uses)
		return nil, err
	}
	s.touch(snap.name)
	return snap, nil
}

func (s *Store) snapshot(r record, uses []*use) (*Snapshot, error) {
	cfg, err := archive.ParseConfig(r.Config)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	name, err := r.Key.name()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	snap := &Snapshot{name: name, ID: r.ID, Names: r.Names, RawConfig: r.Config, Config: cfg, store: s, uses: uses}
	for _, id := range r.Lower {
		snap.lower = append(snap.lower, filepath.Join(s.layerPath(id), "fs"))
		if id == r.Root {
			snap.rootDir = snap.lower[len(snap.lower)-1]
		}
	}
	return snap, nil
}

func readJSON(path string, v any) error {
	raw, err := readRegular(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}
