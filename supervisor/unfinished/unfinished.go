// Package unfinished keeps on the node's disk what a run has achieved, from the
// end of its container until the API has the final state: whatever happens to
// the API, or to the supervisor, an operator can still bring the results home.
//
// A result holds manifests without block signatures, and no token. The blocks
// themselves are in Keep, where they are safe for as long as the cluster's
// BlobSigningTTL (two weeks by default) and, once trashed, the time after that.
package unfinished

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/regular"

	"crunch-oci/keep"
)

// Result is what one run has achieved.
type Result struct {
	UUID string `json:"uuid"` // of the container
	// APIHost is the cluster's, as the run reached it.
	APIHost string    `json:"api_host"`
	SavedAt time.Time `json:"saved_at"`
	// State is the final one: Complete or Cancelled.
	State    string  `json:"state"`
	ExitCode *int    `json:"exit_code"` // nil: none is known
	Cost     float64 `json:"cost"`
	// Log and Output are nil if there is none, or none could be written to Keep.
	Log    *Collection `json:"log"`
	Output *Collection `json:"output"`
	// Reason is why the API has not got it: "" while nothing has gone wrong.
	Reason string `json:"reason,omitempty"`
}

// Collection is what a collection holds.
type Collection struct {
	Manifest       string   `json:"manifest_text"` // without signatures
	StorageClasses []string `json:"storage_classes,omitempty"`
	// PDH is its portable data hash if the API has it already, as a trashed
	// collection.
	PDH string `json:"portable_data_hash,omitempty"`
}

// NewCollection takes the signatures off a manifest.
func NewCollection(manifest, pdh string, classes []string) *Collection {
	return &Collection{Manifest: keep.StripSignatures(manifest), PDH: pdh, StorageClasses: classes}
}

// ErrInUse is returned for a result whose supervisor is alive, or which somebody
// else is delivering.
var ErrInUse = errors.New("in use by a process that is alive (its supervisor still tries to reach the API, or somebody delivers it)")

// Dir is a directory of results, one file each. It need not exist.
type Dir string

// Kept is a result in its file, locked for as long as it is open.
type Kept struct {
	path string
	file *os.File
	// durable says that a result with this name may be on the disk.
	durable bool
}

var uuidPattern = regexp.MustCompile(`^[0-9a-z]{5}-dz642-[0-9a-z]{15}$`)

const suffix = ".json"

func (d Dir) path(uuid string) (string, error) {
	if !uuidPattern.MatchString(uuid) {
		return "", fmt.Errorf("%q is no container UUID", uuid)
	}
	return filepath.Join(string(d), uuid+suffix), nil
}

func temporary(uuid string) string { return ".tmp-" + uuid + "-" }

// Temporary is what the names of files begin with that whoever writes the result
// of a container leaves if he is killed meanwhile.
func (d Dir) Temporary(uuid string) (prefix string) {
	return filepath.Join(string(d), temporary(uuid))
}

// RemoveTemporary removes the files whose names begin with prefix.
func RemoveTemporary(prefix string) error {
	dir, begin := filepath.Split(prefix)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), begin) {
			if gone := os.Remove(filepath.Join(dir, e.Name())); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
				err = errors.Join(err, gone)
			}
		}
	}
	return err
}

// Keep writes a result, in place of an older one of the same container. It
// survives the death of this process at once, and that of the machine after
// [Kept.Sync].
func (d Dir) Keep(r Result) (*Kept, error) {
	path, err := d.path(r.UUID)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, fmt.Errorf("keep results: %w", err)
	}
	_, err = os.Lstat(path)
	k := &Kept{path: path, durable: !errors.Is(err, fs.ErrNotExist)}
	if err := k.write(r); err != nil {
		return nil, fmt.Errorf("keep results: %w", err)
	}
	return k, nil
}

// Update replaces the result.
func (k *Kept) Update(r Result) error {
	old := k.file
	if err := k.write(r); err != nil {
		k.file = old
		return fmt.Errorf("keep results: %w", err)
	}
	return old.Close()
}

// write makes a new file in place of the old one: there is a whole one at every
// moment, also after a power cut if the old one was synced.
func (k *Kept) write(r Result) (err error) {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(k.path), temporary(r.UUID)+"*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := lock(f); err != nil {
		return err
	}
	if _, err := f.Write(append(text, '\n')); err != nil {
		return err
	}
	// A file system may have the new name on the disk long before the content. What
	// takes the place of a result that is on the disk must be there before.
	if k.durable {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := os.Rename(f.Name(), k.path); err != nil {
		return err
	}
	k.file = f
	return nil
}

// Path is the file's.
func (k *Kept) Path() string { return k.path }

// Sync makes the result survive a power cut.
func (k *Kept) Sync() error {
	if err := k.file.Sync(); err != nil {
		return fmt.Errorf("keep results: %w", err)
	}
	k.durable = true
	dir, err := os.Open(filepath.Dir(k.path))
	if err != nil {
		return fmt.Errorf("keep results: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Close leaves the result to others.
func (k *Kept) Close() error { return k.file.Close() }

// Remove removes the result: it has been delivered, or is not wanted.
func (k *Kept) Remove() error {
	err := os.Remove(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, k.Close())
}

func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	}
	return os.NewSyscallError("flock", err)
}

// Take opens a result for delivery or removal. The error is ErrInUse if somebody
// has it, or wraps fs.ErrNotExist if there is none.
func (d Dir) Take(uuid string) (*Kept, Result, error) {
	path, err := d.path(uuid)
	if err != nil {
		return nil, Result{}, err
	}
	f, err := open(path)
	if err != nil {
		return nil, Result{}, err
	}
	if err := lock(f); err != nil {
		_ = f.Close()
		return nil, Result{}, fmt.Errorf("%s: %w", path, err)
	}
	r, err := read(f, uuid)
	if err != nil {
		_ = f.Close()
		return nil, Result{}, err
	}
	return &Kept{path: path, file: f, durable: true}, r, nil
}

// open opens a result. What is none, a pipe above all, is neither waited for nor
// followed.
func open(path string) (*os.File, error) {
	f, err := regular.Open(path, os.O_RDONLY|unix.O_NOFOLLOW)
	if errors.Is(err, regular.ErrNot) {
		err = fmt.Errorf("%w (remove it)", err)
	}
	return f, err
}

// maxFile bounds a file, in bytes: two manifests of the largest size that an API
// server takes, with JSON's escapes.
const maxFile = 1 << 30

func read(f *os.File, uuid string) (r Result, err error) {
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return r, err
	}
	if len(text) > maxFile {
		return r, fmt.Errorf("%s: larger than %d bytes", f.Name(), maxFile)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w (if the machine stopped when it was being written, the result is lost: remove the file)", f.Name(), err)
	}
	if r.UUID != uuid {
		return r, fmt.Errorf("%s: it is about container %q", f.Name(), r.UUID)
	}
	return r, nil
}

// Entry is a line of a list.
type Entry struct {
	Result
	// InUse says that the supervisor is alive and still tries.
	InUse bool `json:"in_use"`
}

// List lists the results, sorted by UUID. What cannot be read is in the error,
// and does not hide the rest.
func (d Dir) List() (list []Entry, err error) {
	files, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range files {
		uuid, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || !uuidPattern.MatchString(uuid) {
			continue
		}
		entry, err := d.look(uuid)
		if errors.Is(err, fs.ErrNotExist) {
			continue // delivered just now
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, entry)
	}
	return list, errors.Join(errs...)
}

// look reads a result without disturbing whoever has it.
func (d Dir) look(uuid string) (e Entry, err error) {
	f, err := open(filepath.Join(string(d), uuid+suffix))
	if err != nil {
		return e, err
	}
	defer f.Close()
	if e.Result, err = read(f, uuid); err != nil {
		return e, err
	}
	// A shared lock, tried for a moment: two who look do not see each other.
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	e.InUse = errors.Is(err, unix.EWOULDBLOCK)
	return e, nil
}
