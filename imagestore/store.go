// Package imagestore keeps the layers of container images unpacked on a node:
// verify once, unpack once, mount many times, forget safely.
//
// An image comes as a tarball (package archive), its layers become directories
// (package layer), and a Snapshot is the right to use those directories, in
// their order, as the lower part of an overlay mount.
//
// The invariant: a directory with a final name is complete, whatever was killed
// and when, and two processes on one node may do everything at once. Below the
// store's root,
//
//	layers/<diff ID>/fs      the layer's files; beside fs lie facts.json and state.json
//	layers/cover-<hash>/fs   corrections for one stack of layers, see cover.go
//	images/<name>.json       an image's configuration and the layers it needs
//	tmp/<name>/              what is being made under that name
//
// Everything is made in a directory of tmp, on which its maker holds an exclusive
// flock(2), and is renamed when it is complete. A lock ends with its process: a
// directory in tmp without a lock is a leftover, which the next user of the store
// removes in the background. Every user of a layer holds a shared lock on the
// layer's directory; whoever gets an exclusive one may remove the layer.
//
// Nothing is synced to disk on the way to a container's start. A layer is
// believed as long as the machine has not rebooted since it was unpacked;
// after that only if Snapshot.Sync had been called, and otherwise it is
// unpacked again. The store belongs on a file system of the node itself.
package imagestore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/layer"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound says that the store does not have the image, or not all of it.
	ErrNotFound = errors.New("image is not in the store")

	// The errors of the image itself, which no other node would treat better.

	ErrCorrupt     = archive.ErrCorrupt     // damaged tarball or layer
	ErrNoImage     = archive.ErrNoImage     // not an image tarball
	ErrWrongID     = archive.ErrWrongID     // not the image its name promises
	ErrAmbiguous   = archive.ErrAmbiguous   // several images, or a document with two meanings
	ErrUnsupported = archive.ErrUnsupported // a kind of tarball that is not read here
	ErrMalformed   = layer.ErrMalformed     // a layer that no engine could unpack
	ErrEscape      = layer.ErrEscape        // a layer that would write outside of its directory
	ErrLimit       = layer.ErrLimit         // a layer with more entries or bytes than allowed
)

// Options adjust a store. Zero values mean the defaults.
type Options struct {
	// Parallel is the number of layers unpacked at once by one Unpack; the
	// default is the number of processors, at most 4.
	Parallel int
	// Layer bounds each layer. Whatever it says, a layer is refused when it
	// would fill the store's file system.
	Layer layer.Options
	// Budget is what the store may take, counted as Amount says; the zero value
	// is no limit. When an image has been unpacked, those that were used least
	// recently are removed until the rest fits; what is in use stays.
	Budget Amount
	// MaxImage is what one image may take; the zero value is no limit. A larger
	// one is refused with ErrLimit, before it has filled the disk.
	MaxImage Amount
	// Warn, if not nil, gets a line about what is wrong with the store and does
	// not stop this user of it; until Close, and from any goroutine.
	Warn func(string)
}

// Store is a directory of unpacked images, shared by all processes of the node.
// It may be used from several goroutines.
type Store struct {
	root       string
	boot       string // identifies the time since the machine booted
	o          Options
	background *background
}

// Capacity is what the file system of dir, which need not exist, has in all.
// Inodes are 0 if it does not count them.
func Capacity(dir string) (Amount, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return Amount{Bytes: int64(st.Blocks) * st.Bsize, Inodes: int64(st.Files)}, nil
		}
		if up := filepath.Dir(dir); err == unix.ENOENT && up != dir {
			dir = up
			continue
		}
		return Amount{}, fmt.Errorf("image store: %w", &os.PathError{Op: "statfs", Path: dir, Err: err})
	}
}

// Open makes the store's directories if need be. In the background, until Close,
// it removes what killed processes have left half made, and layers that the last
// reboot may have damaged.
func Open(root string, o Options) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if o.Parallel <= 0 {
		o.Parallel = min(runtime.GOMAXPROCS(0), 4)
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	s := &Store{root: root, boot: string(bytes.TrimSpace(boot)), o: o, background: newBackground()}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, d := range []string{"layers", "images", "tmp"} {
		if err := privateDir(filepath.Join(root, d)); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	s.background.tasks.Go(s.sweep)
	return s, nil
}

// privateDir makes dir, or checks that nobody else can put things into it or
// reach the set-user-ID programs in it.
func privateDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is no directory: remove it, or set store-dir to another place", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d instead of %d: that user could change the images; remove it, or set store-dir to another place", dir, st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// Scratch is a directory on the store's file system, for archive.Options.
func (s *Store) Scratch() string { return filepath.Join(s.root, "tmp") }

func (s *Store) layerPath(id string) string { return filepath.Join(s.root, "layers", id) }
func (s *Store) tmpPath(name string) string { return filepath.Join(s.root, "tmp", name) }

// Key identifies an image without reading it.
type Key struct {
	// ID is the id that the tarball's name promises, "sha256:" and 64
	// hexadecimal digits: whoever has unpacked an image under it has verified it.
	ID string
	// Source identifies the tarball's content where there is no such id, in the
	// caller's own terms: a collection's hash with the name of a file in it.
	Source string
}

var idName = regexp.MustCompile(`^(sha256:[0-9a-f]{64})\.tar$`)

// KeyFor makes the key of the tarball fileName in a collection whose content
// contentHash identifies. Names other than sha256:<64 hexadecimal digits>.tar
// promise no id.
func KeyFor(contentHash, fileName string) Key {
	if m := idName.FindStringSubmatch(fileName); m != nil {
		return Key{ID: m[1]}
	}
	return Key{Source: contentHash + "/" + fileName}
}

// name is what the key's record is called, safe as a file name.
func (k Key) name() (string, error) {
	switch {
	case k.ID != "":
		if m := idName.FindStringSubmatch(k.ID + ".tar"); m == nil {
			return "", fmt.Errorf("image id %q is not a SHA-256 digest", k.ID)
		}
		return k.ID[len("sha256:"):], nil
	case k.Source != "":
		sum := sha256.Sum256([]byte(k.Source))
		return "source-" + hex.EncodeToString(sum[:]), nil
	}
	return "", errors.New("image key is empty")
}
