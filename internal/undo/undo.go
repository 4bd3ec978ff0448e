// Package undo keeps the inverses of what has been acquired, and runs them in
// reverse order: each acquisition registers its inverse on the next line, and
// whatever ends the run, early or late, ends it through the same list.
package undo

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Stack is a list of clean-up steps. The zero value is ready to use; it may be
// used from several goroutines.
type Stack struct {
	mu    sync.Mutex
	steps []step
}

type step struct {
	name string
	fn   func(context.Context) error
}

// Add registers fn, named by what it undoes ("unmount /x", in the words an
// operator would use), to be run by Run.
func (s *Stack) Add(name string, fn func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, fn})
}

// Run runs every registered step once, the latest first, also when some fail,
// and returns their errors joined, each prefixed with the step's name. Steps
// get ctx without its cancellation: a cancelled run still tidies up. A second
// Run does nothing.
func (s *Stack) Run(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for {
		s.mu.Lock()
		n := len(s.steps)
		if n == 0 {
			s.mu.Unlock()
			return errors.Join(errs...)
		}
		last := s.steps[n-1]
		s.steps = s.steps[:n-1]
		s.mu.Unlock()
		if err := last.fn(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", last.name, err))
		}
	}
}

// Release forgets all steps: what they would undo now belongs to somebody else.
func (s *Stack) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = nil
}
