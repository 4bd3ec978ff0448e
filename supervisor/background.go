package supervisor

import (
	"context"
	"maps"
	"os"
	"sync"
	"sync/atomic"
)

// background holds what happens beside the steps: reports to the API that
// nobody waits for, and the periodic saving of the log.
type background struct {
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

func newBackground(ctx context.Context) *background {
	b := new(background)
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return b
}

// run runs f in a goroutine of its own; f returns when its context ends.
func (b *background) run(f func(context.Context)) {
	b.tasks.Go(func() { f(b.ctx) })
}

// end ends what still goes on, and waits for it.
func (b *background) end() {
	b.cancel()
	b.tasks.Wait()
}

// pids are the processes of a run whose memory is reported by name.
type pids struct {
	mount atomic.Pointer[Mount]
}

// ownProcesses lists them as they are now; it is called from a reporter.
func (r *run) ownProcesses() map[string]int {
	p := map[string]int{"crunch-run": os.Getpid()}
	if r.Helpers != nil {
		maps.Copy(p, r.Helpers())
	}
	if m := r.pids.mount.Load(); m != nil {
		select {
		case <-(*m).Exited(): // the number may be another's now
		default:
			p["arv-mount"] = (*m).PID()
		}
	}
	return p
}
