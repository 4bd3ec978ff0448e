package mount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"crunch-oci/keep"
)

// Writable collections with a record: those that a directory with --mount-by-id
// shows by UUID in a mount with --read-write. They are saved when a file that was
// open for writing is closed, and with fsync, unlink, rmdir and rename (spec
// keep.md section 12); after mkdir, mknod and truncate, and where saving has
// failed, a little later. Before saving, and at lookups when RefreshTime has
// passed, the record is read, and what others have changed is merged.

// errNotTaken says that an API server did nothing of what it was asked for.
var errNotTaken = errors.New("the API server has answered without an error, but with the old content")

// finalSave is how long the mount's end waits until what is not saved yet is.
const finalSave = 15 * time.Second

const (
	// maxFormer is how many contents that others have replaced are remembered.
	maxFormer = 8
	// refusedPause is the least time between two attempts to read a record for
	// new signatures.
	refusedPause = time.Second
)

// origin ties a live collection to its record.
type origin struct {
	uuid string

	// lock is a mutex that can be waited for with a context. It is held while
	// the record is read or written, and shared by all who show that record:
	// else one of them could overwrite what another has just saved.
	lock chan struct{}
	// record is the state that the tree here started from or was merged with
	// last; sent is a manifest that the API server may have taken since.
	record atomic.Pointer[Record]
	sent   string    // protected by lock
	refuse refusals  // protected by lock
	expiry time.Time // of the signatures that the tree has; protected by lock
	former []string  // hashes of what others have replaced lately; protected by lock

	fetched atomic.Int64 // Unix nanoseconds of when the record was read
	tried   atomic.Int64 // and of the latest attempt to read it again

	changes atomic.Int64 // how often something was changed here
	saved   atomic.Int64 // the value of changes that the record has in it
	wanted  atomic.Bool  // somebody counts on it being saved without asking again
	saving  atomic.Int64 // Unix nanoseconds of the latest attempt to save
	// denied says that the API server refused the latest attempt: the token may
	// only read the collection.
	denied atomic.Bool
	// reported is the error that was logged last.
	reported atomic.Pointer[string]
}

// changed notes that something was changed, after it was. With soon it is saved
// before long, without anybody asking.
func (l *live) changed(soon bool) {
	if l.origin == nil {
		return
	}
	l.origin.changes.Add(1)
	if soon {
		l.origin.wanted.Store(true)
	}
}

// changed notes that something about n was changed, wherever it is by now.
func (s *server) changed(n keep.Node, soon bool) { s.liveOf(n).changed(soon) }

func (o *origin) clean() bool { return o.changes.Load() == o.saved.Load() }

func (l *live) denied() bool { return l.origin != nil && l.origin.denied.Load() }

// gone tells whether n is no longer part of the tree because a merge has
// replaced it. Programs must not write to it. The kernel, told ESTALE, looks for
// the name anew.
func (l *live) gone(n keep.Node) bool { return l.origin != nil && !n.Linked() }

// loadLive makes a writable collection of the record with that UUID.
func (s *server) loadLive(ctx context.Context, uuid string) (*collection, error) {
	rec, err := s.backend.API.Collection(ctx, uuid)
	if err != nil {
		return nil, err
	}
	l, err := s.newLive(uuid, rec.ManifestText)
	if err != nil {
		return nil, err
	}
	opts := keep.WriteOptions{Replication: rec.Replication, StorageClasses: rec.StorageClasses}
	if len(opts.StorageClasses) == 0 {
		opts.StorageClasses = s.opts.StorageClasses
	}
	l.files.SetWriteOptions(opts)
	l.files.SetModTime(rec.ModifiedAt)
	o := &origin{uuid: uuid, lock: make(chan struct{}, 1), expiry: signatureExpiry(rec.ManifestText)}
	o.record.Store(&rec)
	o.fetched.Store(time.Now().UnixNano())
	l.origin = o
	l.files.RenewWith(func(ctx context.Context) (string, error) { return s.signedAnew(ctx, l) })
	s.addLive(l)
	return &collection{id: uuid, live: l, ino: l.root().ino()}, nil
}

func (o *origin) acquire(ctx context.Context) error {
	select {
	case o.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (o *origin) release() { <-o.lock }

// freshenLive merges what others have changed, if the record was read too long
// ago. If it cannot be read, what was there stays.
func (s *server) freshenLive(ctx context.Context, l *live) {
	if l.origin != nil && since(&l.origin.fetched) > s.opts.RefreshTime {
		_ = s.refreshLive(ctx, l, min(s.pause(), s.opts.RefreshTime))
	}
}

// refreshLive reads the record unless that was tried within the last pause.
func (s *server) refreshLive(ctx context.Context, l *live, pause time.Duration) error {
	o := l.origin
	begun := time.Now().UnixNano()
	if err := o.acquire(ctx); err != nil {
		return err
	}
	defer o.release()
	switch {
	case o.fetched.Load() > begun:
		return nil // somebody else was faster
	case since(&o.tried) < pause:
		return errPause
	}
	o.tried.Store(time.Now().UnixNano())
	err := s.pull(ctx, l)
	if err != nil && ctx.Err() == nil {
		s.log.warningf("collection %s cannot be read again, using what was read before: %v", o.uuid, err)
	}
	return err
}

// pull reads the record and merges what others have changed. The caller holds
// the lock.
func (s *server) pull(ctx context.Context, l *live) error {
	o := l.origin
	rec, err := s.backend.API.Collection(ctx, o.uuid)
	if err != nil {
		return err
	}
	have := o.record.Load()
	expiry := signatureExpiry(rec.ManifestText)
	if rec.PortableDataHash == have.PortableDataHash {
		if !expiry.IsZero() && (expiry.Sub(o.expiry) > s.ttl/4 || time.Until(o.expiry) < expiresSoon) {
			l.files.RefreshSignatures(rec.ManifestText)
			o.expiry = expiry
		}
	} else {
		base := have.ManifestText
		if o.sent != "" && keep.PortableDataHash(o.sent) == rec.PortableDataHash {
			base = o.sent // an attempt to save whose answer was lost
		}
		if err := s.merge(l, base, rec); err != nil {
			return err
		}
		o.former = append(o.former[max(0, len(o.former)-maxFormer+1):], have.PortableDataHash)
	}
	o.took(l, rec)
	return nil
}

// took notes that the tree has in it what rec has.
func (o *origin) took(l *live, rec Record) {
	l.files.SetModTime(rec.ModifiedAt)
	o.record.Store(&rec)
	o.fetched.Store(time.Now().UnixNano())
}

// merge makes here the changes that led from the manifest base to rec. The caller
// holds the lock.
func (s *server) merge(l *live, base string, rec Record) error {
	o := l.origin
	conflicts, err := l.files.Merge(base, rec.ManifestText, time.Now())
	if err != nil {
		return fmt.Errorf("merge with what others have saved: %w", err)
	}
	l.files.RefreshSignatures(rec.ManifestText)
	o.expiry = signatureExpiry(rec.ManifestText)
	for _, name := range conflicts {
		s.log.warningf("collection %s: changed here and by others at the same time: what others have saved is now %q", o.uuid, name)
		l.changed(true)
	}
	return nil
}

// save brings the record up to date with what was written here before. Nothing is
// done if it is already.
func (s *server) save(ctx context.Context, l *live) error {
	o := l.origin
	if o.clean() {
		return nil
	}
	if err := o.acquire(ctx); err != nil {
		o.wanted.Store(true)
		return err
	}
	defer o.release()
	return s.saveHeld(ctx, l)
}

// saveHeld is save for a caller who holds the lock.
func (s *server) saveHeld(ctx context.Context, l *live) error {
	o := l.origin
	if o.clean() {
		return nil // somebody else has saved it
	}
	o.saving.Store(time.Now().UnixNano())
	o.wanted.Store(false)
	err := s.push(ctx, l)
	switch {
	case err == nil:
		o.denied.Store(false)
		o.reported.Store(nil)
	case errors.Is(err, fs.ErrPermission):
		o.denied.Store(true)
	}
	if err != nil {
		o.wanted.Store(true)
	}
	return err
}

// refusals remembers that the API server has refused to replace single files. That
// may be because it cannot, or because of something that is over at the next save:
// so it is asked again then, and each time that it refuses once more, after twice
// as many saves as before.
type refusals struct {
	row   int // one after the other
	whole int // saves for which it is not asked, the one under way included
}

// maxWhole is the binary logarithm of how many saves there are at most from one
// time that the API server is asked to the next.
const maxWhole = 6

func (r *refusals) refused() {
	r.row = min(r.row+1, maxWhole)
	r.whole = 1<<r.row - 1
}

// saved notes a save.
func (r *refusals) saved() {
	if r.whole > 0 {
		r.whole--
	} else {
		r.row = 0
	}
}

// push saves. The caller holds the lock.
func (s *server) push(ctx context.Context, l *live) error {
	o := l.origin
	// First everything gets stored, which may take long, then the record is read,
	// so that little time remains for others to change it.
	if _, err := l.files.MarshalManifest(ctx); err != nil {
		return err
	}
	if err := s.pull(ctx, l); err != nil {
		return err
	}
	for {
		if err := l.files.Localize(ctx); err != nil {
			return err
		}
		changes := o.changes.Load()
		manifest, err := l.files.MarshalManifest(ctx)
		if err != nil {
			return err
		}
		have := o.record.Load()
		if keep.PortableDataHash(manifest) != have.PortableDataHash {
			err := s.put(ctx, l, have, manifest)
			if errors.Is(err, ErrNoReplace) {
				if err := s.pull(ctx, l); err != nil {
					return err
				}
				if o.record.Load().PortableDataHash == have.PortableDataHash {
					// Not because of what others have saved in this moment.
					o.refuse.refused()
				}
				continue
			}
			if err != nil {
				return err
			}
			o.refuse.saved()
		}
		o.sent = ""
		o.saved.Store(changes)
		return nil
	}
}

// put makes the record say what manifest does, beside what others have saved since
// it said have: what differs is replaced in one step, if the API server can do so.
func (s *server) put(ctx context.Context, l *live, have *Record, manifest string) error {
	o := l.origin
	var replace map[string]string
	if o.refuse.whole == 0 {
		paths, ok, err := keep.Replacements(have.ManifestText, manifest)
		if err != nil {
			return err
		}
		if ok {
			replace = paths
		}
	}
	o.sent = manifest
	rec, err := s.backend.API.SaveCollection(ctx, o.uuid, manifest, replace)
	if err != nil {
		return err
	}
	// The answer to a change may have less of the record than what was read.
	fields := maps.Clone(have.Fields)
	if fields == nil {
		fields = rec.Fields
	} else {
		maps.Copy(fields, rec.Fields)
	}
	rec.Fields = fields
	switch rec.PortableDataHash {
	case keep.PortableDataHash(manifest):
	case have.PortableDataHash:
		if replace != nil {
			return ErrNoReplace // the parameter was passed over
		}
		return errNotTaken
	default:
		if err := s.merge(l, manifest, rec); err != nil {
			return err
		}
	}
	o.took(l, rec)
	return nil
}

// saveNow saves on behalf of a program and says what it is told.
func (s *server) saveNow(ctx context.Context, l *live) fuse.Status {
	if l.origin == nil {
		return fuse.OK
	}
	return s.saveStatus(ctx, l, s.save(ctx, l))
}

// saveStatus logs why saving failed, once for each reason, and says what the
// program is told.
func (s *server) saveStatus(ctx context.Context, l *live, err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case ctx.Err() != nil:
		return fuse.EINTR
	case l.files.Err() != nil:
		return s.writeError(l, err)
	}
	text := err.Error()
	if last := l.origin.reported.Swap(&text); last == nil || *last != text {
		s.log.errorf("collection %s cannot be saved, trying again: %s", l.origin.uuid, text)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fuse.EPERM
	}
	return fuse.EIO
}

// saveChange saves after a change of names, which has been made here whatever
// becomes of that. Only a refusal is reported: everything else is tried again,
// and fsync and close report it.
func (s *server) saveChange(cancel <-chan struct{}, header *fuse.InHeader, l *live) fuse.Status {
	if l.origin == nil {
		return fuse.OK
	}
	l.changed(true)
	ctx, end := s.request(cancel, header)
	defer end()
	if st := s.saveNow(ctx, l); st == fuse.EPERM {
		return st
	}
	return fuse.OK
}

// saveLater saves what nobody waits for, until ctx ends.
func (s *server) saveLater(ctx context.Context) {
	every(ctx, retryEvery, func() {
		for _, l := range s.lives() {
			if o := l.origin; o != nil && o.wanted.Load() && !o.clean() && since(&o.saving) > min(s.pause(), s.opts.RefreshTime) {
				s.saveStatus(ctx, l, s.save(ctx, l))
			}
		}
	})
}

// saveLast saves what is not saved when the mount has ended.
func (s *server) saveLast() (failed error) {
	ctx, cancel := context.WithTimeout(context.Background(), finalSave)
	defer cancel()
	for _, l := range s.lives() {
		if l.origin == nil || l.origin.clean() {
			continue
		}
		if err := s.save(ctx, l); err != nil {
			failed = errors.Join(failed, fmt.Errorf("collection %s: what was changed last is lost, it could not be saved: %w", l.origin.uuid, err))
		}
	}
	return failed
}

// signedAnew returns manifests with new signatures for all that may be read of l:
// the record's and, as files may be open that it no longer has, or there may be
// no record any more, the former ones by their hashes.
func (s *server) signedAnew(ctx context.Context, l *live) (manifests string, err error) {
	o := l.origin
	if err := s.refreshLive(ctx, l, refusedPause); err == nil {
		manifests = o.record.Load().ManifestText
	}
	if o.acquire(ctx) != nil {
		return "", ctx.Err()
	}
	former := o.former
	o.release()
	if manifests == "" {
		former = append(slices.Clone(former), o.record.Load().PortableDataHash)
	}
	for _, pdh := range former {
		rec, failed := s.backend.API.Collection(ctx, pdh)
		err = cmp.Or(err, failed)
		manifests += rec.ManifestText
	}
	if manifests == "" {
		return "", err
	}
	return manifests, nil
}

// liveRecordText is the content of .arvados#collection: the record with the
// manifest of what is in the directory now.
func (s *server) liveRecordText(ctx context.Context, l *live) ([]byte, error) {
	s.freshenLive(ctx, l)
	o := l.origin
	rec := *o.record.Load()
	if !o.clean() {
		manifest, err := l.files.MarshalManifest(ctx)
		if err != nil {
			return nil, err
		}
		rec.ManifestText, rec.PortableDataHash = manifest, keep.PortableDataHash(manifest)
	}
	return recordJSON(rec), nil
}
