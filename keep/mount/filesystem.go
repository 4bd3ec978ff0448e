package mount

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"crunch-oci/keep"
)

// server is the file system. It answers the kernel's requests directly (the raw
// interface of go-fuse): the tree of a collection is an array already, and an
// object for each file the kernel has seen would cost more than the file.
type server struct {
	fuse.RawFileSystem // answers ENOSYS to what is not here

	opts    Options
	backend Backend
	reader  *blockReader
	ttl     time.Duration // of signatures
	log     *logger
	stats   stats

	uid, gid uint32
	started  time.Time

	fixed   map[uint64]*fixedNode
	nodes   regions
	nextIno atomic.Uint64

	liveMu    sync.RWMutex
	live      []*live                    // protected by liveMu
	byFiles   map[*keep.Collection]*live // the same; protected by liveMu
	liveNodes *liveNodes
	movable   bool             // there may be live collections with a record
	joined    *keep.Collection // nothing but what live collections are joined with

	handleMu   sync.RWMutex
	handles    map[uint64]*handle
	nextHandle atomic.Uint64

	ctx     context.Context // ends with the mount
	stop    context.CancelFunc
	closing sync.RWMutex // held for writing while stop is called
	wg      sync.WaitGroup
}

func newServer(ctx context.Context, opts Options, b Backend, log *logger) *server {
	s := &server{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		opts:          opts,
		backend:       b,
		reader:        newBlockReader(b),
		ttl:           b.SignatureTTL,
		log:           log,
		started:       time.Now(),
		uid:           uint32(syscall.Geteuid()),
		gid:           uint32(syscall.Getegid()),
		fixed:         makeFixed(opts.Dirs),
		handles:       make(map[uint64]*handle),
		byFiles:       make(map[*keep.Collection]*live),
		liveNodes:     &liveNodes{nodes: make(map[uint32]*liveNode), index: make(map[keep.Node]*liveNode)},
	}
	s.movable = opts.ReadWrite && slices.ContainsFunc(opts.Dirs, func(d Dir) bool { return d.ByUUID })
	s.joined, _ = keep.NewCollection("", nil) // "" is a manifest
	s.liveNodes.base = s.nodes.add(region{nodes: s.liveNodes}) - 1
	if s.ttl <= 0 {
		s.ttl = defaultTTL
	}
	s.ctx, s.stop = context.WithCancel(ctx)
	return s
}

// background runs fn, which ends with the mount. After that it does nothing.
func (s *server) background(fn func(context.Context)) {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.ctx.Err() == nil {
		s.wg.Go(func() { fn(s.ctx) })
	}
}

// close ends what the mount does beside answering requests. The error says what
// could not be saved.
func (s *server) close() error {
	s.closing.Lock()
	s.stop()
	s.closing.Unlock()
	s.wg.Wait()
	err := s.saveLast()
	for _, l := range s.lives() {
		_ = l.files.Close()
	}
	return err
}

func (s *server) String() string { return "keep" }

// forever is how long the kernel may believe what cannot change.
const forever = 365 * 24 * time.Hour

// validity is how long the kernel may believe names and attributes in p without
// asking again. A portable data hash names one content for ever. What else has a
// record is believed until that is to be read again.
func (s *server) validity(p place) time.Duration {
	var fetched *atomic.Int64
	switch {
	case p.proj != nil:
		fetched = &p.proj.fetched
	case p.live != nil && p.live.origin != nil:
		fetched = &p.live.origin.fetched
	case p.snap != nil && !p.snap.coll.pdh:
		fetched = &p.snap.coll.fetched
	case p.live != nil && s.movable:
		// It may get into one that has a record.
		return s.opts.RefreshTime
	default:
		return forever
	}
	return min(max(s.opts.RefreshTime-since(fetched), 0), s.opts.RefreshTime)
}

const recordName = ".arvados#collection"

// Lookup implements fuse.RawFileSystem.
func (s *server) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	defer s.stats.done(opLookup, time.Now())
	ctx, end := s.request(cancel, header)
	defer end()
	dir, ok := s.find(header.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	defer func() { s.done(dir) }()
	if !dir.isDir() {
		return fuse.ENOTDIR
	}
	switch {
	case dir.live != nil:
		s.freshenLive(ctx, dir.live)
		return s.lookupLive(dir, name, out)
	case dir.proj != nil:
		return s.lookupProject(ctx, dir, name, out)
	case dir.fixed != nil && dir.fixed.root != nil:
		child, ok := dir.fixed.root[name]
		return s.answer(child, ok, dir, out)
	case dir.fixed != nil && name == readmeName:
		return s.answer(dir.fixed.readme, true, dir, out)
	case dir.fixed != nil:
		return s.lookupCollection(ctx, dir, name, out)
	}
	if dir.entry == 0 {
		s.freshen(ctx, dir.snap.coll)
		s.done(dir)
		dir = dir.snap.coll.acquire().at(0)
		if name == recordName {
			return s.answer(dir.snap.at(uint32(len(dir.snap.tree.entries))), true, dir, out)
		}
	}
	entry, ok := dir.snap.tree.lookup(dir.entry, name)
	return s.answer(dir.snap.at(entry), ok, dir, out)
}

// answer fills in the reply to a lookup in dir. That a name does not exist is
// remembered by the kernel like the names that do: programs that search a path
// ask for absent names all the time.
func (s *server) answer(p place, ok bool, dir place, out *fuse.EntryOut) fuse.Status {
	valid := s.validity(dir)
	out.SetEntryTimeout(valid)
	if !ok {
		return fuse.OK // with node 0
	}
	out.SetAttrTimeout(valid)
	s.attr(p, &out.Attr)
	out.NodeId = p.node
	p.remember()
	return fuse.OK
}

// lookupCollection finds a name in by_id. What does not exist now may exist at
// the next attempt, so absence is not to be cached.
func (s *server) lookupCollection(ctx context.Context, dir place, name string, out *fuse.EntryOut) fuse.Status {
	pdh, uuid := kindOf(name)
	if !pdh && !(uuid && dir.fixed.byID.byUUID) {
		s.log.debugf("lookup of %q: not the name of a collection or project", name)
		return fuse.ENOENT
	}
	c, err := s.get(ctx, dir.fixed.byID, name, pdh)
	return s.answerCollection(ctx, c, name, err, dir, out)
}

// answerCollection is the reply to a lookup in dir that has found c, or an error.
func (s *server) answerCollection(ctx context.Context, c *collection, id string, err error, dir place, out *fuse.EntryOut) fuse.Status {
	if err != nil {
		return s.absent(id, err)
	}
	if c.proj != nil {
		return s.answer(c.proj.place(), true, dir, out)
	}
	if c.live != nil {
		s.freshenLive(ctx, c.live)
		s.answer(c.live.root(), true, dir, out)
		out.SetAttrTimeout(s.validity(c.live.root()))
		return fuse.OK
	}
	s.freshen(ctx, c)
	p := c.acquire().at(0)
	defer s.done(p)
	s.answer(p, true, dir, out)
	if !c.pdh {
		out.SetAttrTimeout(s.validity(p))
	}
	return fuse.OK
}

// attr describes a node.
func (s *server) attr(p place, out *fuse.Attr) {
	mode := uint32(syscall.S_IFDIR | 0o555)
	var size int64
	mtime := s.started
	switch {
	case p.live != nil:
		s.attrLive(p, out)
		return
	case p.fixed != nil && p.fixed.data != nil:
		mode, size = syscall.S_IFREG|0o444, int64(len(p.fixed.data))
	case p.fixed != nil:
	case p.proj != nil:
		mtime = p.proj.ModifiedAt
	case p.isRecord():
		mode, size, mtime = syscall.S_IFREG|0o444, int64(len(recordJSON(p.snap.files.Load().record))), p.snap.mtime
	default:
		mtime = p.snap.mtime
		if e := &p.snap.tree.entries[p.entry]; !e.dir {
			mode, size = syscall.S_IFREG|0o555, e.size
		}
	}
	s.fillAttr(p, mode, size, mtime, out)
}

func (s *server) fillAttr(p place, mode uint32, size int64, mtime time.Time, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:     p.ino(),
		Size:    uint64(size),
		Blocks:  uint64(size)/512 + 1,
		Mode:    mode,
		Nlink:   1,
		Owner:   fuse.Owner{Uid: s.uid, Gid: s.gid},
		Blksize: 512,
	}
	out.SetTimes(&mtime, &mtime, &mtime)
}

// GetAttr implements fuse.RawFileSystem.
func (s *server) GetAttr(cancel <-chan struct{}, input *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer s.stats.done(opGetattr, time.Now())
	p, ok := s.find(input.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	defer s.done(p)
	out.SetTimeout(s.validity(p))
	if p.isLiveRecord() {
		out.SetTimeout(0)
	}
	s.attr(p, &out.Attr)
	return fuse.OK
}

// StatFs implements fuse.RawFileSystem. Nobody knows how much fits into Keep;
// programs that check before they write want to see a lot.
func (s *server) StatFs(cancel <-chan struct{}, header *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	defer s.stats.done(opStatfs, time.Now())
	const (
		bsize  = 128 << 10
		blocks = 1 << 50 / bsize // 1 PiB
		files  = 1 << 31
	)
	*out = fuse.StatfsOut{
		Bsize: bsize, Frsize: bsize, NameLen: nameMax,
		Blocks: blocks, Bfree: blocks, Bavail: blocks,
		Files: files, Ffree: files,
	}
	return fuse.OK
}
