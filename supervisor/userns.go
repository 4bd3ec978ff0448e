package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"crunch-oci/supervisor/mounts"
)

// giveFiles gives what has been made for the container to its user namespace, if
// it is to have one. What comes from the FUSE server or the host keeps its owners,
// who are nobody in there.
func (r *run) giveFiles() error {
	ids := r.Limits.Confinement.IDs
	if ids.IsZero() {
		return nil
	}
	// The container's first process, which has no power over the host's files any
	// more, must reach its root directory; nobody else need to.
	if err := errors.Join(os.Lchown(r.Scratch, -1, int(ids.First)), unix.Chmod(r.Scratch, 0o710)); err != nil {
		return fmt.Errorf("open %s to the container: %w", r.Scratch, err)
	}
	for dir := filepath.Dir(r.Scratch); dir != "/"; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if fi.Mode()&0o001 == 0 {
			return fmt.Errorf("a container in a user namespace cannot reach its root directory below %s, because %s is closed to others (mode %#o): choose another TMPDIR", r.Scratch, dir, fi.Mode().Perm())
		}
	}
	for _, b := range r.inputs.plan.Binds {
		own := b.Kind == mounts.BindTmp || b.Kind == mounts.BindFile
		if own && strings.HasPrefix(b.Source, r.Scratch+"/") {
			if err := ids.Give(b.Source); err != nil {
				return fmt.Errorf("give files to the container: %w", err)
			}
		}
	}
	return nil
}
