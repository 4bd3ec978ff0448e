package undo

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestRunReversesAndReportsEveryFailure(t *testing.T) {
	var s Stack
	var order []string
	boom := errors.New("boom")
	for _, name := range []string{"a", "b", "c"} {
		s.Add(name, func(ctx context.Context) error {
			order = append(order, name)
			if ctx.Err() != nil {
				t.Errorf("step %s got a cancelled context", name)
			}
			if name == "b" {
				return boom
			}
			return nil
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := s.Run(ctx)
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "b: boom") {
		t.Errorf("error %v does not name the failed step", err)
	}
	if got := strings.Join(order, ""); got != "cba" {
		t.Errorf("order %q, want cba", got)
	}
	if err := s.Run(ctx); err != nil || len(order) != 3 {
		t.Errorf("second Run: %v, %v", err, order)
	}
}

func TestReleaseForgets(t *testing.T) {
	var s Stack
	s.Add("a", func(context.Context) error { t.Error("ran"); return nil })
	s.Release()
	if err := s.Run(context.Background()); err != nil {
		t.Error(err)
	}
}
