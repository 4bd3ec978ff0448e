// Package lease lends the GPUs of a node to containers, each to one at a time.
// A GPU is lent while its lock file is locked (fcntl(2), open file description
// locks), by a supervisor: the kernel takes the lock back when that dies, in
// whatever way. All supervisors of a node use the same directory.
package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/gpu/device"
	"crunch-oci/internal/filelock"
	"crunch-oci/internal/regular"
)

// Owner is written into the lock file of a GPU that is lent, for operators.
type Owner struct {
	UUID string `json:"UUID"` // of the container
	PID  int    `json:"PID"`  // of its supervisor
	// GPU is the device's number on this node.
	GPU string `json:"GPU"`
	// Remains is a path that exists until everything of the container is gone.
	// Who dies leaves it behind for others to clean up, and until they have, the
	// GPU may still be in use by a process that does not end.
	Remains string `json:"Remains,omitempty"`
}

const (
	all  = "all.lock"
	poll = 20 * time.Millisecond
)

// patience is how long the remains of a dead run are waited for.
var patience = 15 * time.Second

// Dir is the directory of the lock files of a node; it is made when needed.
type Dir string

// Lease holds GPUs until it is released, or this process ends.
type Lease struct {
	dir     Dir
	files   []*os.File
	devices []device.Device
	// Shared says who else holds a device, by UUID, that was taken all the same.
	Shared map[string]Owner
}

// Devices are those that are held.
func (l *Lease) Devices() []device.Device { return l.devices }

// Take lends devices to owner. choose is given those candidates that are free,
// and returns the ones wanted. If it returns device.ErrBusy, and some candidates
// are being cleaned up after a dead supervisor, it is asked again when they are.
//
// Everybody chooses one after the other, so nobody sees a choice half made.
func (d Dir) Take(ctx context.Context, candidates []device.Device, owner Owner, choose func(free []device.Device) ([]device.Device, error)) (*Lease, error) {
	deadline := time.Now().Add(patience)
	for {
		l, dying, err := d.takeOnce(ctx, candidates, owner, choose)
		if !dying || !errors.Is(err, device.ErrBusy) || time.Now().After(deadline) {
			return l, err
		}
		if err := wait(ctx); err != nil {
			return nil, err
		}
	}
}

// Share takes exactly these devices, which a scheduler has chosen: also those
// that others hold, because it may have its reasons.
func (d Dir) Share(ctx context.Context, devices []device.Device, owner Owner) (*Lease, error) {
	l, err := d.Take(ctx, devices, owner, func(free []device.Device) ([]device.Device, error) {
		if len(free) < len(devices) {
			return nil, device.ErrBusy
		}
		return free, nil
	})
	if !errors.Is(err, device.ErrBusy) {
		return l, err
	}
	l, _, err = d.takeOnce(ctx, devices, owner, func(free []device.Device) ([]device.Device, error) { return free, nil })
	if err != nil {
		return nil, err
	}
	l.Shared = make(map[string]Owner)
	for _, dev := range devices {
		if !l.holds(dev.UUID) {
			// Or its last holder, of whom something is left.
			l.Shared[dev.UUID] = d.lastHolder(dev.UUID)
		}
	}
	l.devices = devices
	return l, nil
}

func (l *Lease) holds(uuid string) bool {
	for _, h := range l.devices {
		if h.UUID == uuid {
			return true
		}
	}
	return false
}

func (d Dir) takeOnce(ctx context.Context, candidates []device.Device, owner Owner, choose func([]device.Device) ([]device.Device, error)) (_ *Lease, dying bool, err error) {
	// The place may be anybody's to write (/var/lock): in a directory of others every
	// GPU could be lent twice.
	if err := regular.MakeDir(string(d), 0o755); err != nil {
		return nil, false, fmt.Errorf("GPU locks: %w", err)
	}
	gate, err := d.open(all)
	if err != nil {
		return nil, false, err
	}
	defer gate.Close()
	for {
		if ok, err := lock(gate); err != nil {
			return nil, false, err
		} else if ok {
			break
		}
		if err := wait(ctx); err != nil {
			return nil, false, err
		}
	}
	locked := make(map[string]*os.File)
	defer func() {
		for _, f := range locked {
			_ = f.Close() // not chosen: the content is as it was
		}
	}()
	var free []device.Device
	for _, c := range candidates {
		f, err := d.open(fileName(c.UUID))
		if err != nil {
			return nil, false, err
		}
		ok, err := lock(f)
		if err != nil || !ok {
			_ = f.Close()
			if err != nil {
				return nil, false, err
			}
			continue
		}
		if o := read(f); o.Remains != "" && o.UUID != owner.UUID && exists(o.Remains) {
			dying = true
			_ = f.Close()
			continue
		}
		locked[c.UUID] = f
		free = append(free, c)
	}
	chosen, err := choose(free)
	if err != nil {
		return nil, dying, err
	}
	l := &Lease{dir: d}
	for _, c := range chosen {
		f := locked[c.UUID]
		if f == nil {
			return nil, false, errors.Join(fmt.Errorf("GPU %s was chosen and is not free", c.Label()), l.Release())
		}
		delete(locked, c.UUID)
		l.files = append(l.files, f)
		l.devices = append(l.devices, c)
		owner.GPU = c.Label()
		if err := write(f, owner); err != nil {
			return nil, false, errors.Join(err, l.Release())
		}
	}
	return l, false, nil
}

// Release gives the devices back. A second call does nothing.
func (l *Lease) Release() error {
	var errs []error
	for _, f := range l.files {
		// Emptied first: as soon as it is unlocked it may be another's.
		errs = append(errs, f.Truncate(0), f.Close())
	}
	l.files = nil
	return errors.Join(errs...)
}

// Holder says who holds a device; the zero Owner if nobody does, or it cannot be
// told.
func (d Dir) Holder(uuid string) Owner {
	f, err := os.OpenFile(filepath.Join(string(d), fileName(uuid)), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return Owner{}
	}
	defer f.Close()
	// Asking takes no lock, so it is in nobody's way.
	holder := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &holder); err != nil || holder.Type == unix.F_UNLCK {
		return Owner{}
	}
	return read(f)
}

// lastHolder says who holds a device, or has died with it.
func (d Dir) lastHolder(uuid string) Owner {
	f, err := os.OpenFile(filepath.Join(string(d), fileName(uuid)), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return Owner{}
	}
	defer f.Close()
	return read(f)
}

// Holders says in words who holds which of the devices, for a message: also of
// dead ones, of whom something is left.
func (d Dir) Holders(devices []device.Device) string {
	var said []string
	for _, dev := range devices {
		if o := d.Holder(dev.UUID); o.UUID != "" {
			said = append(said, fmt.Sprintf("%s: %s", dev.Label(), o.UUID))
		} else if o := d.lastHolder(dev.UUID); o.Remains != "" && exists(o.Remains) {
			said = append(said, fmt.Sprintf("%s: %s, whose supervisor has died, has left %s", dev.Label(), o.UUID, o.Remains))
		}
	}
	return strings.Join(said, ", ")
}

// fileName makes a file name of a UUID, which comes from a driver.
func fileName(uuid string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '_'
	}, uuid) + ".lock"
}

// lockMode keeps others out: who may read a file may lock it for reading, and
// nobody could lock it for writing then.
const lockMode = 0o600

func (d Dir) open(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, lockMode)
	if err != nil {
		return nil, fmt.Errorf("GPU lock: %w", err)
	}
	// Also one that is there already.
	if err := f.Chmod(lockMode); err != nil {
		return nil, errors.Join(fmt.Errorf("GPU lock: %w", err), f.Close())
	}
	return f, nil
}

func lock(f *os.File) (bool, error) { return filelock.TryBytes(f, unix.F_WRLCK, 0, 0) }

// longest bounds what is read of a lock file, in bytes.
const longest = 4096

// read returns what is in a lock file; of one that is being written, or was
// never finished, the zero Owner.
func read(f *os.File) (o Owner) {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, longest))
	if err != nil || json.Unmarshal(text, &o) != nil {
		return Owner{}
	}
	return o
}

func write(f *os.File, o Owner) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(append(text, '\n'), 0)
	return err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func wait(ctx context.Context) error {
	t := time.NewTimer(poll)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
