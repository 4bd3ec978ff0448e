package keep

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	serviceCacheTTL   = 5 * time.Minute
	serviceCacheRetry = 3 * time.Second
	serviceCacheFirst = time.Minute
)

// ServiceCache is a ServiceLister that asks another one every five minutes and
// keeps the old list when that fails. Only for the first list callers wait: it
// is tried again every 3 s and must arrive within a minute.
type ServiceCache struct {
	lister ServiceLister

	turn    chan struct{} // held by whoever asks or looks
	known   bool          // list was got at least once
	list    []Service
	expires time.Time
}

// NewServiceCache returns a cache of what lister says.
func NewServiceCache(lister ServiceLister) *ServiceCache {
	return &ServiceCache{lister: lister, turn: make(chan struct{}, 1)}
}

// KeepServices returns the list. An error means that there has never been one.
func (s *ServiceCache) KeepServices(ctx context.Context) ([]Service, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if time.Now().Before(s.expires) {
		return s.list, nil
	}
	if !s.known {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, serviceCacheFirst, errors.New("no list within a minute"))
		defer cancel()
	}
	for {
		list, err := s.lister.KeepServices(ctx)
		if err == nil {
			s.known, s.list, s.expires = true, list, time.Now().Add(serviceCacheTTL)
			return list, nil
		}
		if s.known {
			s.expires = time.Now().Add(serviceCacheRetry)
			return s.list, nil
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
	s.turn <- struct{}{}
	s.expires = time.Time{}
	<-s.turn
}
