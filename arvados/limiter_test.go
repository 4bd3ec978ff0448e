package arvados

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// start acquires n slots, each on a goroutine of its own, and returns how many
// were granted so far and a way to end them.
func start(t *testing.T, l *limiter, n int) (granted func() int, finish func(status int)) {
	got := make(chan struct{}, n)
	for range n {
		go func() {
			if err := l.acquire(t.Context(), realClock{}); err == nil {
				got <- struct{}{}
			}
		}()
	}
	synctest.Wait()
	return func() int { synctest.Wait(); return len(got) },
		func(status int) { <-got; l.release(status, realClock{}) }
}

func TestLimiterBoundsConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter()
		granted, finish := start(t, l, 12)
		if granted() != 8 {
			t.Fatalf("%d requests at once at the beginning, want 8", granted())
		}
		finish(0) // a transport error changes nothing but frees the slot
		if granted() != 8 {
			t.Fatalf("%d granted after one ended, want 8", granted())
		}
		finish(200)
		if granted() != 9 {
			t.Fatalf("%d granted after a success, want 9: one slot freed, one more allowed", granted())
		}
	})
}

func TestLimiterHalvesAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter()
		_, finish := start(t, l, 8)
		for range 8 {
			finish(503)
		}
		if l.limit != 4 {
			t.Fatalf("limit %d after eight simultaneous 503s, want 4", l.limit)
		}
		began := time.Now()
		granted, finish := start(t, l, 5)
		if granted() != 0 {
			t.Fatal("a request started in the quiet second after a 503")
		}
		time.Sleep(quietPeriod)
		if granted() != 4 {
			t.Fatalf("%d granted after %s, want 4", granted(), time.Since(began))
		}
		for range 4 {
			finish(200)
		}
		if l.limit != 8 {
			t.Fatalf("limit %d after four successes, want 8", l.limit)
		}
	})
}

func TestLimiterStaysBetweenOneAndTwiceThePeak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter()
		for range 10 {
			_, finish := start(t, l, 1)
			finish(503)
			time.Sleep(quietPeriod)
		}
		if l.limit != 1 {
			t.Fatalf("limit %d after many 503s, want 1", l.limit)
		}
		for range 100 {
			_, finish := start(t, l, 1)
			finish(200)
		}
		if l.limit != 2 {
			t.Fatalf("limit %d when never more than one request ran, want 2", l.limit)
		}
	})
}

func TestLimiterWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter()
		l.limit = 0
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.acquire(ctx, realClock{}) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != context.Canceled {
			t.Fatal(err)
		}
	})
}

func TestLimiterIsSharedByTheProcess(t *testing.T) {
	a, err := NewClient(Config{Host: "shared.example:1", Token: "first-token"})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := NewClient(Config{Host: "shared.example:1", Token: "second-token"})
	c, _ := NewClient(Config{Host: "shared.example:2", Token: "first-token"})
	if a.limiter != b.limiter || a.limiter != a.WithToken("third-token").limiter {
		t.Error("clients of one server have limits of their own")
	}
	if a.limiter == c.limiter {
		t.Error("one server's trouble slows calls to another")
	}
}
