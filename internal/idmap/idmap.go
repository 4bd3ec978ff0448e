// Package idmap is about the ids of a user namespace (user_namespaces(7)): those
// that a container knows as 0, 1, 2 and so on are others on the host, of nobody
// there.
package idmap

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
)

// Range are the host's user and group ids of a user namespace, of which the first
// is the namespace's 0. The zero value means no namespace: ids are the host's.
type Range struct{ First, Count uint32 }

// IsZero tells whether there is no user namespace.
func (r Range) IsZero() bool { return r.Count == 0 }

// Host returns the host's id of one in the namespace; false: it has none.
func (r Range) Host(id uint32) (uint32, bool) {
	if r.IsZero() {
		return id, true
	}
	return r.First + id, id < r.Count
}

// Namespace makes a user namespace with this mapping and nobody in it, for
// idmapped mounts (mount_setattr(2)). It lasts as long as the file is open.
func (r Range) Namespace() (*os.File, error) {
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(r.First), Size: int(r.Count)}}
	var ns *os.File
	var err error
	forkthread.Do(func() {
		// Traced, the program stops at its first instruction, and never runs.
		var p *os.Process
		p, err = os.StartProcess("/proc/self/exe", []string{"user-namespace"}, &os.ProcAttr{
			Env: []string{}, Dir: "/",
			Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps, Pdeathsig: syscall.SIGKILL, Ptrace: true},
		})
		if err != nil {
			return
		}
		ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
		_ = p.Kill()
		_, _ = p.Wait()
	})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace (see /proc/sys/user/max_user_namespaces; /proc/sys/kernel/yama/ptrace_scope must not be 3): %w", err)
	}
	return ns, nil
}

// Give makes the namespace's root the owner of what the host's root owns of path
// and below it, as far as it is on path's file system. Links are not followed.
// Nobody else may change the tree meanwhile.
func (r Range) Give(path string) error {
	var top unix.Stat_t
	if err := unix.Lstat(path, &top); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: name, Err: err}
		}
		if st.Dev != top.Dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		uid, gid := -1, -1
		if st.Uid == 0 {
			uid = int(r.First)
		}
		if st.Gid == 0 {
			gid = int(r.First)
		}
		if uid < 0 && gid < 0 {
			return nil
		}
		if err := os.Lchown(name, uid, gid); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return nil
		}
		return unix.Chmod(name, st.Mode&0o7777) // chown(2) clears set-group-ID
	})
}
