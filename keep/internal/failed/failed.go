// Package failed remembers for a while what was tried in vain.
package failed

import (
	"sync"
	"time"
)

const (
	// pause is how long something is remembered.
	pause = 30 * time.Second
	// most is how many things are remembered: with one more all are forgotten,
	// which costs as many attempts.
	most = 100
)

// Set is what has failed lately, by any names. The zero value is ready to use.
type Set struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// Add notes that it has failed now.
func (s *Set) Add(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since == nil || len(s.since) >= most {
		s.since = make(map[string]time.Time)
	}
	s.since[name] = time.Now()
}

// Has tells whether it has failed lately.
func (s *Set) Has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.since[name]
	return ok && time.Since(at) < pause
}
