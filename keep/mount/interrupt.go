package mount

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// request returns the context of a FUSE request and a function to call when it
// has been answered.
//
// The kernel interrupts a request for any signal, but the reader of a regular
// file is not prepared for EINTR: a Go program is sent SIGURG all the time, a
// profiled one SIGPROF. Only the death of the caller is a reason to give up,
// and then it is a pressing one, since until the answer comes the process
// cannot be killed. So an interrupt ends the context only once SIGKILL is
// pending, into which the kernel turns every fatal signal.
func (s *server) request(cancel <-chan struct{}, header *fuse.InHeader) (context.Context, func()) {
	r := &requestContext{Context: s.ctx, cancel: cancel, tid: header.Pid}
	return r, r.end
}

// requestContext starts to watch only when somebody waits for its end, which a
// request that is answered from memory never does.
type requestContext struct {
	context.Context // of the mount
	cancel          <-chan struct{}
	tid             uint32

	mu    sync.Mutex
	inner context.Context // nil until Done is called
	stop  context.CancelFunc
}

func (r *requestContext) Done() <-chan struct{} { return r.watch().Done() }

func (r *requestContext) Err() error {
	r.mu.Lock()
	inner := r.inner
	r.mu.Unlock()
	if inner != nil {
		return inner.Err()
	}
	return r.Context.Err()
}

func (r *requestContext) watch() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inner == nil {
		r.inner, r.stop = context.WithCancel(r.Context)
		go func(ctx context.Context, stop context.CancelFunc) {
			select {
			case <-r.cancel:
			case <-ctx.Done():
				return
			}
			// The kernel sends one interrupt per request, so a signal that
			// kills may follow without another one.
			ticker := time.NewTicker(50 * time.Millisecond)
			defer ticker.Stop()
			for !dying(r.tid) {
				select {
				case <-ticker.C:
				case <-ctx.Done():
					return
				}
			}
			stop()
		}(r.inner, r.stop)
	}
	return r.inner
}

func (r *requestContext) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stop != nil {
		r.stop()
	}
}

// dying tells whether a thread has a SIGKILL pending or is gone. See
// proc_pid_status(5), SigPnd and ShdPnd.
func dying(tid uint32) bool {
	if tid == 0 {
		return false // in a PID namespace that we do not see
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(int(tid)) + "/status")
	if err != nil {
		return os.IsNotExist(err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		const kill = 1 << (9 - 1)
		if set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err == nil && set&kill != 0 {
			return true
		}
	}
	return false
}
