package stats

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const (
	defaultInterval = 10 * time.Second
	memoryInterval  = time.Second
)

// Config says what is reported, how often and where to.
type Config struct {
	Sources Sources
	// Out gets the reports, one write each; it puts a time stamp before every
	// line.
	Out io.Writer
	// Interval between reports; 10 s if not positive.
	Interval time.Duration
	// RAM is the container's memory constraint in bytes, 0 if it has none.
	RAM int64
	// Printf gets the message that a part of RAM is in use. Nil discards it.
	Printf func(format string, args ...any)
}

// Reporter samples and reports until it is stopped.
type Reporter struct {
	c    Config
	stop context.CancelFunc
	done chan struct{}

	mu       sync.Mutex
	counters counters
	maxima   maxima
	err      error // the first of Out
}

// Start writes the notices and a first report at once, and then one per
// interval. Memory is also sampled every second, for maxima and thresholds.
// Whoever starts a reporter stops it; the end of ctx stops it as well, but
// without a last report.
func Start(ctx context.Context, c Config) *Reporter {
	if c.Interval <= 0 {
		c.Interval = defaultInterval
	}
	if c.Printf == nil {
		c.Printf = func(string, ...any) {}
	}
	stopped, stop := context.WithCancel(context.WithoutCancel(ctx))
	r := &Reporter{c: c, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.run(ctx, stopped)
	}()
	return r
}

func (r *Reporter) run(ctx, stopped context.Context) {
	r.report(strings.Join(append(r.c.Sources.Notices, ""), "\n"))
	reports := time.NewTicker(r.c.Interval)
	defer reports.Stop()
	samples := time.NewTicker(memoryInterval)
	defer samples.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-stopped.Done():
			// The final interval, and runs shorter than one, are reported too.
			r.report("")
			return
		case <-reports.C:
			r.report("")
		case <-samples.C:
			r.memory()
		}
	}
}

// Stop makes a last report and ends the reporter. It is to be called while the
// cgroup can still be read. Stop waits for the end, but not longer than ctx: a
// file system that does not answer must not hold up the run. The error is the
// first that occurred while writing, or ctx's.
func (r *Reporter) Stop(ctx context.Context) error {
	r.stop()
	select {
	case <-r.done:
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the last statistics report: %w", ctx.Err())
	}
}

// Maxima returns what crunch-run.txt says after the end of the container:
// totals as of the last report, and maxima.
func (r *Reporter) Maxima() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.maxima.lines(&r.counters, r.c.RAM)
}

// ProcessMaxima returns a message for every process of Sources.Processes.
func (r *Reporter) ProcessMaxima() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.maxima.processLines()
}

// memory takes a sample of the memory.
func (r *Reporter) memory() (m Memory) {
	if r.c.Sources.Memory == nil {
		return m
	}
	m = r.c.Sources.Memory()
	r.mu.Lock()
	lines := r.maxima.memory(m, r.c.RAM)
	r.mu.Unlock()
	for _, line := range lines {
		r.c.Printf("%s", line)
	}
	return m
}

// report takes a sample of everything and writes it below head.
//
// Samples are taken without the lock, because a source may hang.
func (r *Reporter) report(head string) {
	s := r.c.Sources
	var b strings.Builder
	b.WriteString(head)
	write := func(f func(at time.Time) string) {
		at := time.Now()
		r.mu.Lock()
		defer r.mu.Unlock()
		b.WriteString(f(at))
	}
	if s.Memory != nil {
		m := r.memory()
		write(func(time.Time) string { return r.counters.memory(m) })
	}
	if s.Processes != nil {
		list, err := s.Processes()
		write(func(time.Time) string {
			r.maxima.processes(list)
			return r.counters.processes(list, err)
		})
	}
	if s.CPU != nil {
		v := s.CPU()
		write(func(at time.Time) string { return r.counters.processor(v, at) })
	}
	if s.Disks != nil {
		for _, v := range s.Disks() {
			write(func(at time.Time) string { return r.counters.disk(v, at) })
		}
	}
	if s.Networks != nil {
		for _, v := range s.Networks() {
			write(func(at time.Time) string { return r.counters.network(v, at) })
		}
	}
	if s.Filesystem != nil {
		if v, ok := s.Filesystem(); ok {
			write(func(at time.Time) string {
				r.maxima.filesystem(v)
				return r.counters.filesystem(v, at)
			})
		}
	}
	if s.GPUs != nil {
		for _, v := range s.GPUs() {
			write(func(time.Time) string {
				r.maxima.gpu(v)
				return gpuLine(v)
			})
		}
	}
	if b.Len() == 0 {
		return
	}
	if _, err := io.WriteString(r.c.Out, b.String()); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.err == nil {
			r.err = fmt.Errorf("write statistics: %w", err)
		}
	}
}
