package joblog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultPeriod = 30 * time.Minute
	defaultGrowth = 32 << 20
	// A log collection that is no longer saved, because its supervisor is gone,
	// goes away by itself after this time.
	trashAfter = 14 * 24 * time.Hour
)

// Request is what a request for the log collection carries; its JSON encoding
// is the body expected by the API (lifecycle.md, section 4).
type Request struct {
	Select           []string   `json:"select"`
	EnsureUniqueName bool       `json:"ensure_unique_name,omitempty"`
	Collection       Collection `json:"collection"`
}

// Collection are the attributes of the log collection in a request. Those left
// out are not changed.
type Collection struct {
	Name         string     `json:"name"`
	ManifestText *string    `json:"manifest_text,omitempty"`
	TrashAt      *time.Time `json:"trash_at,omitempty"`
	DeleteAt     *time.Time `json:"delete_at,omitempty"`
	IsTrashed    bool       `json:"is_trashed,omitempty"`
}

// Saver sends requests with the dispatcher's token.
type Saver interface {
	// CreateCollection sends POST collections.
	CreateCollection(ctx context.Context, r Request) (uuid, pdh string, err error)
	// UpdateCollection sends PUT collections/<uuid>. Its error wraps
	// ErrCollectionGone if the answer is that there is no such collection.
	UpdateCollection(ctx context.Context, uuid string, r Request) (pdh string, err error)
	// SetContainerLog sends PUT containers/<uuid> with {"log":pdh}.
	SetContainerLog(ctx context.Context, pdh string) error
}

// ErrCollectionGone tells that the log collection was deleted by somebody; the
// next save makes a new one.
var ErrCollectionGone = errors.New("log collection does not exist")

// saver is the part of a Log that knows what has been saved.
type saver struct {
	to     Saver
	name   string
	policy policy
	wanted chan struct{} // an operator asks for a save
	needed chan struct{} // a writer waits for the room a save makes

	end      sync.Once
	ended    chan struct{} // closed when Final begins
	finish   sync.Once
	finished chan struct{} // closed when Final is over

	turn chan struct{} // holds a token while nobody saves; guards uuid
	uuid string        // of the collection, once there is one

	manifest atomic.Pointer[string] // the latest
}

func newSaver(c Config) *saver {
	s := &saver{
		to:     c.Saver,
		name:   "logs for " + c.UUID,
		policy: policy{period: c.Period, growth: c.Growth},
		wanted: make(chan struct{}, 1),
		needed: make(chan struct{}, 1),
		turn:   make(chan struct{}, 1),

		ended:    make(chan struct{}),
		finished: make(chan struct{}),
	}
	if s.policy.period <= 0 {
		s.policy.period = defaultPeriod
	}
	if s.policy.growth <= 0 {
		s.policy.growth = defaultGrowth
	}
	s.turn <- struct{}{}
	return s
}

// policy decides when the log is saved while nothing else happens. It counts
// only the saves it has called for itself.
type policy struct {
	period time.Duration
	growth int64
	size   int64     // at the last save
	at     time.Time // of the last save, at first the start
}

// due says whether to save now; asked means that an operator wants it.
func (p *policy) due(now time.Time, size int64, asked bool) bool {
	if size == p.size {
		return false
	}
	return asked || now.Sub(p.at) >= p.period || size-p.size >= p.growth
}

func (p *policy) saved(now time.Time, size int64) { p.at, p.size = now, size }

// checkEvery is how often the policy is asked: 5 s of 30 min.
func (p *policy) checkEvery() time.Duration { return max(p.period/360, time.Millisecond) }

// Run saves the log whenever it is due, and publishes what was saved, until ctx
// is done or [Log.Final] is called. A failed save is logged, and tried again
// when the next one is due.
func (l *Log) Run(ctx context.Context) {
	s := l.saver
	p := s.policy
	p.saved(time.Now(), 0)
	tick := time.NewTicker(p.checkEvery())
	defer tick.Stop()
	for {
		asked, needed := false, false
		select {
		case <-ctx.Done():
			return
		case <-s.ended:
			return
		case <-s.wanted:
			asked = true
		case <-s.needed:
			needed = true
		case <-tick.C:
		}
		now, size := time.Now(), l.Size()
		if !p.due(now, size, asked) && !needed {
			continue
		}
		p.saved(now, size)
		if _, err := l.Publish(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ErrClosed) {
			l.Printf("error updating log collection: %v", err)
		}
	}
}

// SaveSoon makes Run save at once if the log has changed. It does not wait, and
// may be called from a signal handler's goroutine.
func (l *Log) SaveSoon() { poke(l.saver.wanted) }

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // somebody has done so already
	}
}

// Save saves the log collection and returns its portable data hash. It waits
// for a save that is under way. The container's log is not set: just before
// Running the hash travels in that update.
func (l *Log) Save(ctx context.Context) (pdh string, err error) {
	return l.saveNow(ctx, false)
}

// Publish saves the log collection as Save does, and sets the container's log.
func (l *Log) Publish(ctx context.Context) (pdh string, err error) {
	return l.saveNow(ctx, true)
}

// Manifest is the manifest of the log collection as it was last written to Keep,
// whether or not it could be saved; false if it never was. It has signatures.
func (l *Log) Manifest() (text string, ok bool) {
	m := l.saver.manifest.Load()
	if m == nil {
		return "", false
	}
	return *m, true
}

// Flush writes everything to Keep, so that Manifest has it, without asking the
// API for anything.
func (l *Log) Flush(ctx context.Context) error {
	s := l.saver
	if err := s.takeTurn(ctx); err != nil {
		return err
	}
	defer s.giveTurn()
	manifest, err := l.marshal(ctx)
	if err != nil {
		return fmt.Errorf("write log data to Keep: %w", err)
	}
	s.manifest.Store(&manifest)
	return nil
}

func (l *Log) saveNow(ctx context.Context, publish bool) (pdh string, err error) {
	s := l.saver
	if err := s.takeTurn(ctx); err != nil {
		return "", err
	}
	defer s.giveTurn()
	if s.over() {
		return "", ErrClosed
	}
	if pdh, err = l.save(ctx, false); err != nil || !publish {
		return pdh, err
	}
	if err := s.to.SetContainerLog(ctx, pdh); err != nil {
		return pdh, fmt.Errorf("set container log: %w", err)
	}
	return pdh, nil
}

// Final logs state as the last line of crunch-run.txt, ends every file, and
// saves the log collection for the last time, as a trashed one: the API server
// makes the requester's copy of it. From now on messages go to stderr only and
// no other save is made. A Final that failed may be called again.
func (l *Log) Final(ctx context.Context, state string) (pdh string, err error) {
	l.close(state)
	s := l.saver
	s.end.Do(func() { close(s.ended) })
	defer s.finish.Do(func() { close(s.finished) })
	if err := s.takeTurn(ctx); err != nil {
		return "", err
	}
	defer s.giveTurn()
	if !l.backlog.wait() {
		// The last messages are worth an attempt to make room for them. Its
		// error is met again below.
		if _, err := l.marshal(ctx); err == nil {
			l.backlog.wait()
		}
	}
	return l.save(ctx, true)
}

// takeTurn waits until nobody else saves.
func (s *saver) takeTurn(ctx context.Context) error {
	select {
	case <-s.turn:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another save of the log: %w", ctx.Err())
	}
}

func (s *saver) giveTurn() { s.turn <- struct{}{} }

// over says whether the final save has begun.
func (s *saver) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// save flushes and sends the collection. If the data cannot be written to Keep
// an existing collection is still updated, without a manifest, so that it does
// not reach its trash date; and the error is returned.
func (l *Log) save(ctx context.Context, final bool) (string, error) {
	s := l.saver
	r := Request{Select: []string{"uuid", "portable_data_hash"}, Collection: Collection{Name: s.name}}
	manifest, flushErr := l.marshal(ctx)
	if flushErr != nil {
		flushErr = fmt.Errorf("write log data to Keep: %w", flushErr)
		if s.uuid == "" {
			return "", flushErr // nothing whose trash date could be put off
		}
	} else {
		r.Collection.ManifestText = &manifest
		s.manifest.Store(&manifest)
	}
	// A final save that failed is tried again: until it succeeds the collection
	// must not be in the trash, where it could not be found.
	if r.Collection.IsTrashed = final && flushErr == nil; !r.Collection.IsTrashed {
		// Not together with is_trashed: the server would then ignore that.
		at := time.Now().UTC().Add(trashAfter)
		r.Collection.TrashAt, r.Collection.DeleteAt = &at, &at
	}
	pdh, err := s.send(ctx, r)
	if err != nil {
		err = fmt.Errorf("save log collection: %w", err)
	}
	if err = errors.Join(flushErr, err); err != nil {
		return "", err
	}
	return pdh, nil
}

func (s *saver) send(ctx context.Context, r Request) (pdh string, err error) {
	if s.uuid != "" {
		pdh, err = s.to.UpdateCollection(ctx, s.uuid, r)
		if !errors.Is(err, ErrCollectionGone) {
			return pdh, err
		}
		s.uuid = ""
		if r.Collection.ManifestText == nil {
			return "", err
		}
	}
	r.EnsureUniqueName = true
	uuid, pdh, err := s.to.CreateCollection(ctx, r)
	if err != nil {
		return "", err
	}
	s.uuid = uuid
	return pdh, nil
}
