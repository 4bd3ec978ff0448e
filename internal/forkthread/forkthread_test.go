package forkthread

import (
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestDoUsesOneThread(t *testing.T) {
	tids := make(map[int]bool)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			Do(func() {
				mu.Lock()
				defer mu.Unlock()
				tids[syscall.Gettid()] = true
			})
		})
	}
	wg.Wait()
	if len(tids) != 1 {
		t.Errorf("ran on %d threads, want 1", len(tids))
	}
}

// A child with a parent-death signal lives on although the goroutine that
// asked for it, and its thread, are gone.
func TestChildOutlivesItsStarter(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		var err error
		Do(func() { err = cmd.Start() })
		started <- err
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err := <-exited:
		t.Fatalf("child ended by itself: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-exited
}

// A new thread has no children, whoever has used it before.
func TestNewThreadIsChildless(t *testing.T) {
	for range 20 {
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil { // on the thread of this goroutine
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				thread := New()
				defer thread.End()
				thread.Do(func() {
					if !childless() {
						t.Error("the thread has children")
					}
				})
			})
		}
		wg.Wait()
	}
}
