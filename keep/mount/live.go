package mount

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"crunch-oci/keep"
)

// live is a collection that programs write to: a new one, for --mount-tmp, or one
// with a record, see origin. All changes of a new one go through this mount, so
// that the kernel may believe what it knows until it changes it itself.
type live struct {
	origin *origin // nil in a new one

	name  string
	files *keep.Collection
	base  uint64 // node of the top directory, less 1

	ino       func() uint64 // gives out inode numbers
	recordIno uint64

	// record is what .arvados#collection had in it when it was opened last.
	record atomic.Pointer[[]byte]
	// reported is the upload error that was logged last.
	reported atomic.Pointer[error]
}

// liveNodes are the files and directories in live collections that the kernel
// knows, but for the top ones. They keep their numbers, and so their inodes, when
// they are moved to another collection.
type liveNodes struct {
	base uint64 // of the region, less 1

	mu    sync.Mutex
	nodes map[uint32]*liveNode // by the lower half of the node number
	index map[keep.Node]*liveNode
	next  uint32
}

// liveNode is one of them.
type liveNode struct {
	id   uint32
	node keep.Node
	refs uint64 // how often the kernel was given its number
}

// Lower halves of node numbers in the region of a collection.
const (
	liveRoot   = 1
	liveRecord = 2
)

// liveUploads is how many blocks of a collection are uploaded at once: more take
// 64 MiB of memory each, and the way to Keep is full with two.
const liveUploads = 2

// addTmp makes a new collection in the root of the mount.
func (s *server) addTmp(name string) error {
	l, err := s.newLive(name, "")
	if err != nil {
		return err
	}
	l.files.SetWriteOptions(keep.WriteOptions{StorageClasses: s.opts.StorageClasses})
	s.addLive(l)
	root := s.fixed[rootNode]
	root.root[name] = l.root()
	root.names = append(root.names, name)
	return nil
}

// newLive makes a collection that can be written to of a manifest.
func (s *server) newLive(name, manifest string) (*live, error) {
	files, err := keep.NewCollection(manifest, s.backend.Blocks)
	if err != nil {
		return nil, err
	}
	files.LimitUploads(liveUploads)
	files.Join(s.joined)
	l := &live{name: name, files: files}
	l.ino = func() uint64 { return s.inodes(1) }
	l.recordIno = l.ino()
	return l, nil
}

// addLive makes l known. What ends with the mount closes it.
func (s *server) addLive(l *live) {
	l.base = s.nodes.add(region{live: l}) - 1
	s.liveMu.Lock()
	defer s.liveMu.Unlock()
	for _, other := range s.live {
		if l.origin != nil && other.origin != nil && l.origin.uuid == other.origin.uuid {
			l.origin.lock = other.origin.lock
		}
	}
	s.live = append(s.live, l)
	s.byFiles[l.files] = l
}

// lives returns the collections that can be written to.
func (s *server) lives() []*live {
	s.liveMu.RLock()
	defer s.liveMu.RUnlock()
	return slices.Clone(s.live)
}

func (l *live) root() place {
	return place{node: l.base + liveRoot, live: l, file: l.files.Root()}
}

// liveOf is the collection that a file or directory is in by now.
func (s *server) liveOf(n keep.Node) *live {
	c := n.Collection()
	s.liveMu.RLock()
	defer s.liveMu.RUnlock()
	return s.byFiles[c]
}

// know is the place of a node whose number the kernel is given once more.
func (s *server) know(n keep.Node) place {
	l := s.liveOf(n)
	if n == l.files.Root() {
		return l.root()
	}
	t := s.liveNodes
	t.mu.Lock()
	defer t.mu.Unlock()
	ln := t.index[n]
	if ln == nil {
		ln = &liveNode{node: n}
		for t.next == 0 || t.nodes[t.next] != nil { // after 2^32 of them
			t.next++
		}
		ln.id = t.next
		t.next++
		t.nodes[ln.id], t.index[n] = ln, ln
	}
	ln.refs++
	return place{node: t.base + uint64(ln.id), live: l, file: n}
}

// find resolves the lower half of a node number.
func (l *live) find(id uint32) (place, bool) {
	switch id {
	case liveRoot:
		return l.root(), true
	case liveRecord:
		return place{node: l.base + liveRecord, live: l}, true
	}
	return place{}, false
}

// findLive resolves the lower half of the number of a node that know has told.
func (s *server) findLive(id uint32) (place, bool) {
	t := s.liveNodes
	t.mu.Lock()
	ln := t.nodes[id]
	t.mu.Unlock()
	if ln == nil {
		return place{}, false
	}
	return place{node: t.base + uint64(id), live: s.liveOf(ln.node), file: ln.node}, true
}

// forget notes that the kernel has forgotten the number n times.
func (t *liveNodes) forget(id uint32, n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ln := t.nodes[id]
	if ln == nil {
		return
	}
	if ln.refs -= min(n, ln.refs); ln.refs == 0 {
		delete(t.nodes, id)
		delete(t.index, ln.node)
	}
}

// writeError logs why an upload failed, once for each error, and says what the
// program is told.
func (s *server) writeError(l *live, err error) fuse.Status {
	if errors.Is(err, context.Canceled) {
		return fuse.EINTR
	}
	if last := l.reported.Load(); last == nil || !errors.Is(err, *last) {
		cause := err
		if failed := l.files.Err(); failed != nil && errors.Is(err, failed) {
			cause = failed
		}
		l.reported.Store(&cause)
		s.log.errorf("%s: %v (collection %s)", writeFailed, err, l.name)
	}
	return fuse.EIO
}

// retryEvery is the time between two attempts to store what could not be stored.
const retryEvery = 2 * time.Second

// retryUploads tries failed uploads again, until ctx ends. Without it one outage
// of Keep would make all later writes fail.
func (s *server) retryUploads(ctx context.Context) {
	every(ctx, retryEvery, func() {
		for _, l := range s.lives() {
			if err := l.files.Err(); err != nil {
				s.writeError(l, err)
				_ = l.files.Flush(ctx, "", true) // fails only with ctx
			}
		}
	})
}

// renewBlocks keeps what is stored of the new collections readable, savable and
// from being collected as garbage, until ctx ends: a container may run for
// longer than signatures last. Those of half that time are renewed.
func (s *server) renewBlocks(ctx context.Context) {
	every(ctx, max(s.ttl/8, time.Second), func() {
		for _, l := range s.lives() {
			if l.origin != nil {
				s.freshenLive(ctx, l) // its record has new ones
				continue
			}
			if err := l.files.Renew(ctx, time.Now().Add(s.ttl/2)); err != nil && ctx.Err() == nil {
				s.log.warningf("collection %s: signatures of stored blocks cannot be renewed, trying again later: %v", l.name, err)
			}
		}
	})
}

// recordText stores everything and returns the content of .arvados#collection.
func (s *server) recordText(ctx context.Context, l *live) ([]byte, error) {
	if l.origin != nil {
		text, err := s.liveRecordText(ctx, l)
		if err == nil {
			l.record.Store(&text)
		}
		return text, err
	}
	manifest, err := l.files.MarshalManifest(ctx)
	if err != nil {
		return nil, err
	}
	classes := s.opts.StorageClasses
	if len(classes) == 0 {
		classes = []string{"default"}
	}
	text := recordJSON(Record{
		PortableDataHash: keep.PortableDataHash(manifest),
		ManifestText:     manifest,
		Fields:           map[string]any{"uuid": nil, "storage_classes_desired": classes},
	})
	l.record.Store(&text)
	return text, nil
}
