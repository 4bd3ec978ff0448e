package keep

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	serviceCacheTTL   = 5 * time.Minute
	serviceCacheRetry = 3 * time.Second
	serviceCacheFirst = time.Minute
	// serviceCacheRenew is how long one reader of blocks is held up for a newer
	// list when there is an old one.
	serviceCacheRenew = 10 * time.Second
)

// ServiceCache is a ServiceLister that asks another one every five minutes and
// keeps the old list when that fails. Only for the first list everybody waits:
// it is asked for every 3 s and must arrive within a minute.
type ServiceCache struct {
	lister ServiceLister
	first  chan struct{} // held by whoever asks for the first list

	mu       sync.Mutex
	list     []Service
	known    bool // there is a list
	renewing bool
	asked    time.Time // for the list last

	doubtAfter time.Duration // an answer is trusted for this long
	expires    time.Time
}

// NewServiceCache returns a cache of what lister says.
func NewServiceCache(lister ServiceLister) *ServiceCache {
	return &ServiceCache{lister: lister, first: make(chan struct{}, 1), doubtAfter: serviceCacheRetry}
}

// Prime gives the cache a list that somebody else has just got.
func (s *ServiceCache) Prime(list []Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.list, s.asked, s.expires = true, list, time.Now(), time.Now().Add(serviceCacheTTL)
}

// KeepServices returns the list. An error means that there has never been one.
func (s *ServiceCache) KeepServices(ctx context.Context) ([]Service, error) {
	list, known, renew := s.look()
	switch {
	case renew:
		return s.renew(ctx), nil
	case known:
		return list, nil
	}
	select {
	case s.first <- struct{}{}:
		defer func() { <-s.first }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	list, known = s.list, s.known
	s.mu.Unlock()
	if known {
		return list, nil
	}
	return s.getFirst(ctx)
}

// look returns the list, and renew if the caller is the one to get a newer one.
func (s *ServiceCache) look() (list []Service, known, renew bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known && !s.renewing && !time.Now().Before(s.expires) {
		s.renewing, renew = true, true
	}
	return s.list, s.known, renew
}

func (s *ServiceCache) renew(ctx context.Context) []Service {
	ctx, cancel := context.WithTimeout(ctx, serviceCacheRenew)
	defer cancel()
	list, err := s.lister.KeepServices(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewing, s.asked = false, time.Now()
	if err != nil {
		s.expires = time.Now().Add(serviceCacheRetry)
	} else {
		s.list, s.expires = list, time.Now().Add(serviceCacheTTL)
	}
	return s.list
}

func (s *ServiceCache) getFirst(ctx context.Context) ([]Service, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, serviceCacheFirst, errors.New("no list within a minute"))
	defer cancel()
	for {
		list, err := s.lister.KeepServices(ctx)
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.known, s.list, s.asked, s.expires = true, list, time.Now(), time.Now().Add(serviceCacheTTL)
			return list, nil
		}
		retry := time.NewTimer(serviceCacheRetry)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return nil, fmt.Errorf("%w; latest attempt: %w", context.Cause(ctx), err)
		}
	}
}

// Expire makes the next call ask again, for example after a SIGHUP.
func (s *ServiceCache) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expires = time.Time{}
}

// Doubt makes the next call ask again because a service does not answer: it may
// have come back at another address. It does so at most every three seconds,
// however many callers find that.
func (s *ServiceCache) Doubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if soonest := s.asked.Add(s.doubtAfter); s.expires.After(soonest) {
		s.expires = soonest
	}
}
