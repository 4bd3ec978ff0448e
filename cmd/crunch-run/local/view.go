package local

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"crunch-oci/imagestore"
	"crunch-oci/supervisor"
)

// view is what somebody at a terminal, or reading a file, sees of the run: bars
// for the long steps (plain lines when it is no terminal), the container's
// output as it comes, and in the end a summary. It is the run's observer.
type view struct {
	stdout, stderr io.Writer
	terminal       bool
	verbose        bool

	mu      sync.Mutex
	unpack  *bar
	started time.Time
	usage   supervisor.Usage
}

func newView(stdout, stderr io.Writer, verbose bool) *view {
	v := &view{stdout: stdout, stderr: stderr, verbose: verbose}
	if f, ok := stderr.(*os.File); ok {
		v.terminal = term.IsTerminal(int(f.Fd()))
	}
	return v
}

// messages is where the supervisor's own messages go.
func (v *view) messages() io.Writer {
	if v.verbose {
		return v.stderr
	}
	return io.Discard
}

// Step implements supervisor.Observer.
func (v *view) Step(string) { v.endProgress() }

// ImageProgress implements supervisor.Observer.
func (v *view) ImageProgress(p imagestore.Progress) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unpack == nil {
		v.unpack = v.progress("unpacking image", p.Total)
	}
	v.unpack.set(p.Done)
}

// endProgress ends the bar of a step that is over.
func (v *view) endProgress() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unpack != nil {
		v.unpack.end()
		v.unpack = nil
	}
}

// Output implements supervisor.Observer.
func (v *view) Output(stream string) io.Writer {
	if stream == "stdout" {
		return v.stdout
	}
	return v.stderr
}

// Started implements supervisor.Observer.
func (v *view) Started(at time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.started = at
}

// Ended implements supervisor.Observer.
func (v *view) Ended(u supervisor.Usage) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.usage = u
}

// bar shows how far a long step is.
type bar struct {
	out   io.Writer
	title string
	total int64
	began time.Time
	show  *progressbar.ProgressBar // nil: plain lines

	mu   sync.Mutex
	done int64
	over bool
}

// progress begins a step of total bytes.
func (v *view) progress(title string, total int64) *bar {
	b := &bar{out: v.stderr, title: title, total: total, began: time.Now()}
	if v.terminal {
		b.show = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(v.stderr), progressbar.OptionSetDescription(title),
			progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionSetWidth(30),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionShowElapsedTimeOnFinish())
	}
	return b
}

func (b *bar) add(n int) { b.update(func(done int64) int64 { return done + int64(n) }) }

func (b *bar) set(n int64) { b.update(func(int64) int64 { return n }) }

func (b *bar) update(f func(int64) int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = f(b.done)
	if b.show != nil && !b.over {
		_ = b.show.Set64(min(b.done, b.total)) // a broken terminal is no reason to fail
	}
}

// end leaves one line that says what was done.
func (b *bar) end() {
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
	fmt.Fprintf(b.out, "%s: %s in %.1f s\n", b.title, units.BytesSize(float64(b.done)), time.Since(b.began).Seconds())
}
