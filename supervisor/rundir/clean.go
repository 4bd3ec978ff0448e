package rundir

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/hostdir"
)

// Sweep cleans up after every dead run below root, until ctx ends; what is left
// then, or fails, is tried again by the next sweep. It returns the names of the
// runs that it cleaned. It touches no network.
func Sweep(ctx context.Context, root string, rm Removers) (cleaned []string, err error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("runtime directory: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", root, context.Cause(ctx)))
			break
		}
		if !e.IsDir() {
			continue
		}
		path := filepath.Join(root, e.Name())
		d, err := acquire(path, false)
		switch {
		case errors.Is(err, ErrRunning), errors.Is(err, errCleaning):
			continue
		case errors.Is(err, os.ErrNotExist):
			// Its maker or remover was killed between two calls, or is about to
			// make the second. Only an empty directory goes, and a new run whose
			// directory vanishes makes it again.
			if err = removeEmpty(path); err == nil {
				continue
			}
		case err == nil:
			err = d.destroy(ctx, rm)
			_ = d.lock.Close()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("clean up after the dead run %s: %w", e.Name(), err))
			continue
		}
		cleaned = append(cleaned, e.Name())
	}
	return cleaned, errors.Join(errs...)
}

// clean makes a just locked directory as new: what a dead run left goes, the
// lock file stays.
func (d *Dir) clean(ctx context.Context, rm Removers) error {
	if err := d.removeOwned(ctx, rm); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == lockName {
			continue
		}
		name := filepath.Join(d.path, e.Name())
		if e.IsDir() {
			err = hostdir.RemoveAll(ctx, name)
		} else {
			err = os.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// destroy removes what is owned, then the directory, the lock file last: as
// long as it exists the directory is found and cleaned again.
func (d *Dir) destroy(ctx context.Context, rm Removers) error {
	if err := d.clean(ctx, rm); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(d.path, lockName)); err != nil {
		return err
	}
	return removeEmpty(d.path)
}

// removeEmpty removes a directory unless something is in it: then the next run
// of the container has begun there.
func removeEmpty(path string) error {
	err := unix.Rmdir(path)
	switch err {
	case nil, unix.ENOENT, unix.ENOTEMPTY, unix.EEXIST:
		return nil
	}
	return &os.PathError{Op: "rmdir", Path: path, Err: err}
}

// removeOwned removes the recorded things, latest first, all of them also when
// some fail. A line cut short by the death of its writer names nothing that was
// made; one of an unknown kind was written by a newer version, and stays.
func (d *Dir) removeOwned(ctx context.Context, rm Removers) error {
	data, err := os.ReadFile(filepath.Join(d.path, ownedName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var things []Thing
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var t Thing
		if json.Unmarshal(lines.Bytes(), &t) == nil && t.Kind != "" {
			things = append(things, t)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", ownedName, err)
	}
	var errs []error
	for i := len(things) - 1; i >= 0; i-- {
		remove, ok := rm[things[i].Kind]
		if !ok {
			errs = append(errs, fmt.Errorf("cannot remove %s %s: this version does not know what that is", things[i].Kind, things[i].ID))
			continue
		}
		if err := remove(ctx, things[i].ID); err != nil {
			errs = append(errs, fmt.Errorf("remove %s %s: %w", things[i].Kind, things[i].ID, err))
		}
	}
	return errors.Join(errs...)
}
