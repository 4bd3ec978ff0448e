package local

import (
	"io"
	"sync"
	"time"

	"crunch-oci/cmd/crunch-run/transfer"
	"crunch-oci/imagestore"
	"crunch-oci/supervisor"
)

// view is what somebody at a terminal, or reading a file, sees of the run: bars
// for the long steps (plain lines when it is no terminal), the container's
// output as it comes, and in the end a summary. It is the run's observer.
type view struct {
	stdout, stderr io.Writer
	verbose        bool

	mu      sync.Mutex
	unpack  *transfer.Bar
	started time.Time
	usage   supervisor.Usage

	// onEnd is called when the container has ended. May be nil.
	onEnd func()
}

func newView(stdout, stderr io.Writer, verbose bool) *view {
	return &view{stdout: stdout, stderr: stderr, verbose: verbose}
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
	v.unpack.Set(p.Done)
}

// endProgress ends the bar of a step that is over.
func (v *view) endProgress() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unpack != nil {
		v.unpack.End()
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
	if v.onEnd != nil {
		v.onEnd()
	}
}

// progress begins a step of total bytes.
func (v *view) progress(title string, total int64) *transfer.Bar {
	return transfer.NewBar(v.stderr, title, total)
}
