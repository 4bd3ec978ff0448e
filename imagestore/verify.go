package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Damage is something in the store that is not as it was unpacked.
type Damage struct {
	Layer string `json:"layer"` // below layers/
	Path  string `json:"path"`  // in the layer, "" for the layer itself
	Text  string `json:"problem"`
}

func (d Damage) String() string {
	if d.Path == "" {
		return d.Layer + ": " + d.Text
	}
	return d.Layer + ": " + d.Path + ": " + d.Text
}

// maxDamage is how many findings are told of one layer.
const maxDamage = 20

// Verify looks at every file of a layer of the store, named as in
// ImageInfo.LayerNames: nothing may have been changed, added or removed since it was
// unpacked, and all content must be readable. It relies on the kernel noting
// every change through the file system (the inode's change time) and on the disk
// or file system noticing damaged blocks; the content itself was checked against
// the image when it was unpacked. A clock that is set back during an unpack
// looks like a change.
func (s *Store) Verify(ctx context.Context, layer string) ([]Damage, error) {
	if !layerName.MatchString(layer) {
		return nil, fmt.Errorf("image store: %q is not the name of a layer", layer)
	}
	u, err := s.use(layer)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return []Damage{{Layer: layer, Text: "missing"}}, nil
	case errors.Is(err, errStale):
		return []Damage{{Layer: layer, Text: "not known to have survived the last reboot"}}, nil
	case err != nil:
		return nil, fmt.Errorf("image store: %w", err)
	}
	defer u.close()
	v := verifier{ctx: ctx, layer: layer, buf: make([]byte, 1<<20)}
	var st unix.Stat_t
	if _, err := s.readFacts(layer); err != nil {
		v.found("", "facts.json: "+err.Error())
	} else if err := unix.Lstat(filepath.Join(s.layerPath(layer), "facts.json"), &st); err != nil {
		v.found("", "facts.json: "+err.Error())
	}
	// Written after the last file, before the layer got its name.
	v.unpacked = time.Unix(st.Ctim.Unix())
	files := filepath.Join(s.layerPath(layer), "fs")
	if info, err := os.Lstat(files); err == nil && !info.IsDir() {
		v.found("", "fs is no directory") // opening a pipe would wait
		return v.damage, nil
	}
	root, err := os.OpenRoot(files)
	if err != nil {
		v.found("", err.Error())
		return v.damage, nil
	}
	defer root.Close()
	if len(v.damage) == 0 {
		err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error { return v.visit(root, name, d, err) })
	}
	if errors.Is(err, errEnough) {
		err = nil
	}
	return v.damage, err
}

// errEnough ends a walk that has found enough.
var errEnough = errors.New("too much damage to list")

type verifier struct {
	ctx      context.Context
	layer    string
	unpacked time.Time
	buf      []byte
	damage   []Damage
}

func (v *verifier) found(path, text string) {
	v.damage = append(v.damage, Damage{Layer: v.layer, Path: path, Text: text})
}

func (v *verifier) visit(root *os.Root, name string, _ fs.DirEntry, err error) error {
	if cause := v.ctx.Err(); cause != nil {
		return cause
	}
	if len(v.damage) >= maxDamage {
		return errEnough
	}
	if err != nil {
		v.found(name, err.Error())
		return nil
	}
	info, err := root.Lstat(name)
	if err != nil {
		v.found(name, err.Error())
		return nil
	}
	st := info.Sys().(*syscall.Stat_t)
	changed := time.Unix(st.Ctim.Unix())
	if changed.After(v.unpacked) {
		v.found(name, fmt.Sprintf("changed at %s, after it was unpacked", changed.UTC().Format(time.RFC3339Nano)))
		return nil
	}
	if info.Mode().IsRegular() {
		if err := v.read(root, name); err != nil {
			v.found(name, err.Error())
		}
	}
	return nil
}

// read reads a file, for the error that a damaged block gives.
func (v *verifier) read(root *os.Root, name string) error {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOATIME|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if v.ctx.Err() != nil {
			return nil // visit tells
		}
		_, err := f.Read(v.buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
