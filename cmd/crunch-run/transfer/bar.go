package transfer

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Bar shows how far a long step is: a bar at a terminal, else one line at the
// end. A nil Bar shows nothing.
type Bar struct {
	out   io.Writer
	title string
	total int64
	began time.Time
	show  *progressbar.ProgressBar // nil: plain lines

	mu   sync.Mutex
	done int64
	over bool
}

// NewBar begins a step of total bytes.
func NewBar(out io.Writer, title string, total int64) *Bar {
	b := &Bar{out: out, title: title, total: total, began: time.Now()}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b.show = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(out), progressbar.OptionSetDescription(title),
			progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionSetWidth(30),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionShowElapsedTimeOnFinish())
	}
	return b
}

// Add counts n more bytes.
func (b *Bar) Add(n int) { b.update(func(done int64) int64 { return done + int64(n) }) }

// Set says that n bytes are done.
func (b *Bar) Set(n int64) { b.update(func(int64) int64 { return n }) }

func (b *Bar) update(f func(int64) int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = f(b.done)
	if b.show != nil && !b.over {
		_ = b.show.Set64(min(b.done, b.total)) // a broken terminal is no reason to fail
	}
}

// End leaves one line that says what was done.
func (b *Bar) End() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return
	}
	b.over = true
	if b.show != nil {
		_ = b.show.Clear()
		_ = b.show.Exit()
	}
	if b.done == 0 && b.total > 0 {
		return // there was nothing to be done
	}
	fmt.Fprintf(b.out, "%s: %s in %.1f s\n", b.title, units.BytesSize(float64(b.done)), time.Since(b.began).Seconds())
}
