package keepstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"crunch-oci/keep"
)

// mount is a volume as this server may use it.
type mount struct {
	volume
	uuid        string
	allowWrite  bool
	allowTrash  bool
	replication int
	classes     []string
	priority    int
}

func newMount(cfg *Config, v VolumeConfig, b *buffers) (*mount, error) {
	m := &mount{
		uuid:        v.UUID,
		allowWrite:  !v.ReadOnly,
		allowTrash:  !v.ReadOnly || v.AllowTrashWhenReadOnly,
		replication: max(v.Replication, 1),
		classes:     slices.Clone(v.StorageClasses),
	}
	if len(m.classes) == 0 {
		m.classes = []string{"default"}
	}
	for i, c := range m.classes {
		if p := cfg.StorageClassPriority[c]; i == 0 || p > m.priority {
			m.priority = p
		}
	}
	var err error
	if v.S3 != nil {
		m.volume, err = newS3Volume(cfg, v, b)
	} else {
		m.volume, err = newDirectory(cfg, v)
	}
	if err != nil {
		return nil, &VolumeError{Volume: v.UUID, Err: err}
	}
	return m, nil
}

func newDirectory(cfg *Config, v VolumeConfig) (*directory, error) {
	if !filepath.IsAbs(v.Root) {
		return nil, fmt.Errorf("Root %q is not an absolute path", v.Root)
	}
	fi, err := os.Stat(v.Root)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("Root %s is not a directory", v.Root)
	}
	d := &directory{root: v.Root, noSync: cfg.NoSync, ttl: cfg.BlobSigningTTL, lifetime: cfg.BlobTrashLifetime}
	if v.Serialize {
		d.serial = new(sync.Mutex)
	}
	return d, nil
}

// probeOrder returns mounts in the order in which a block is looked for, and
// written.
func probeOrder(mounts []*mount, hash string) []*mount {
	if len(mounts) == 1 {
		return mounts
	}
	keys := make([]keep.Mount, len(mounts))
	byUUID := make(map[string]*mount, len(mounts))
	for i, m := range mounts {
		keys[i] = keep.Mount{UUID: m.uuid, Priority: m.priority}
		byUUID[m.uuid] = m
	}
	ordered := make([]*mount, len(mounts))
	for i, k := range keep.MountOrder(hash, keys) {
		ordered[i] = byUUID[k.UUID]
	}
	return ordered
}

// stored counts what a PUT has achieved.
type stored struct {
	replicas  int
	confirmed map[string]int  // class -> replicas
	missing   map[string]bool // wanted classes without a copy
	any       bool            // no class was asked for: one copy will do
}

func newStored(classes []string) *stored {
	st := &stored{confirmed: make(map[string]int), missing: make(map[string]bool), any: len(classes) == 0}
	for _, c := range classes {
		st.missing[c] = true
	}
	return st
}

func (st *stored) add(m *mount) {
	st.replicas += m.replication
	for _, c := range m.classes {
		st.confirmed[c] += m.replication
		delete(st.missing, c)
	}
}

// wants tells whether a copy on m would be of use.
func (st *stored) wants(m *mount) bool {
	if st.any {
		return st.replicas == 0
	}
	return slices.ContainsFunc(m.classes, func(c string) bool { return st.missing[c] })
}

// header is the value of X-Keep-Storage-Classes-Confirmed.
func (st *stored) header() string {
	var parts []string
	for c, n := range st.confirmed {
		parts = append(parts, c+"="+strconv.Itoa(n))
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}

// store puts a block on enough mounts to have a copy in each class (on one
// mount, if no class is given). It fails only if no mount holds the block
// afterwards, or if a different block with the same hash is there.
func (s *Server) store(ctx context.Context, hash string, data []byte, classes []string) (*stored, error) {
	st := newStored(classes)
	var todo []*mount
	for _, m := range probeOrder(s.mounts, hash) {
		if !m.allowWrite || !st.wants(m) {
			continue
		}
		switch ok, err := m.refresh(ctx, hash, data); {
		case ok:
			st.add(m)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, errCollision):
			return nil, err
		default:
			if err != nil {
				s.log.Error("compare with stored copy", "mount", m.uuid, "block", hash, "error", err.Error())
			}
			todo = append(todo, m)
		}
	}
	err := s.writeCopies(ctx, st, todo, hash, data)
	if st.replicas == 0 {
		return nil, err
	}
	return st, nil
}

// writeCopies writes to as many of todo as are needed, in parallel and in
// rounds: the next mounts are tried only after the ones before have failed.
func (s *Server) writeCopies(ctx context.Context, st *stored, todo []*mount, hash string, data []byte) error {
	result := error(errFull) // also if nobody offers a wanted class
	for {
		// Choose the mounts that would do if all succeeded.
		plan := &stored{replicas: st.replicas, any: st.any, confirmed: map[string]int{}, missing: map[string]bool{}}
		for c := range st.missing {
			plan.missing[c] = true
		}
		var now, later []*mount
		for _, m := range todo {
			if plan.wants(m) {
				now = append(now, m)
				plan.add(m)
			} else {
				later = append(later, m)
			}
		}
		if len(now) == 0 {
			return result
		}
		errs := make([]error, len(now))
		var wg sync.WaitGroup
		for i, m := range now {
			wg.Go(func() { errs[i] = m.write(ctx, hash, data) })
		}
		wg.Wait()
		for i, m := range now {
			if errs[i] == nil {
				st.add(m)
				continue
			}
			s.log.Error("write", "mount", m.uuid, "block", hash, "error", errs[i].Error())
			if !errors.Is(errs[i], errFull) {
				result = errUnavailable
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		todo = later
	}
}

// find calls fn for the mounts in probe order until one succeeds. The result
// is then nil, else the last error that is not "no such block", else
// errNotFound.
func (s *Server) find(hash string, usable func(*mount) bool, fn func(*mount) error) error {
	result := error(errNotFound)
	for _, m := range probeOrder(s.mounts, hash) {
		if !usable(m) {
			continue
		}
		err := fn(m)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNotFound) {
			s.log.Error("access block", "mount", m.uuid, "block", hash, "error", err.Error())
			result = err
		}
	}
	return result
}
