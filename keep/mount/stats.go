package mount

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// op is a FUSE operation as it is counted.
type op int

const (
	opRead op = iota
	opWrite
	opDestroy
	opOnEvent
	opGetattr
	opSetattr
	opLookup
	opForget
	opOpen
	opRelease
	opOpendir
	opReaddir
	opStatfs
	opCreate
	opMkdir
	opUnlink
	opRmdir
	opRename
	opFlush
	numOps
)

// opNames are the names in reports, in the order of the lines there.
var opNames = [numOps]string{
	"read", "write", "destroy", "on_event", "getattr", "setattr", "lookup", "forget", "open", "release",
	"opendir", "readdir", "statfs", "create", "mkdir", "unlink", "rmdir", "rename", "flush",
}

// stats counts operations. It is written to by every request, so all of it is
// atomic.
type stats struct {
	ops                     [numOps]struct{ count, nanos atomic.Int64 }
	readBytes, writtenBytes atomic.Int64
}

// done counts an operation that began at start. It is meant for defer.
func (s *stats) done(o op, start time.Time) {
	s.ops[o].count.Add(1)
	s.ops[o].nanos.Add(int64(time.Since(start)))
}

// total is the number of all operations.
func (s *stats) total() (n int64) {
	for i := range s.ops {
		n += s.ops[i].count.Load()
	}
	return n
}

// sample is what a report shows.
type sample struct {
	counters                Counters
	readBytes, writtenBytes int64
	counts                  [numOps]int64
	seconds                 [numOps]float64
}

func (s *stats) sample(counters func() Counters) sample {
	var now sample
	if counters != nil {
		now.counters = counters()
	}
	now.readBytes, now.writtenBytes = s.readBytes.Load(), s.writtenBytes.Load()
	for i := range s.ops {
		now.counts[i] = s.ops[i].count.Load()
		now.seconds[i] = time.Duration(s.ops[i].nanos.Load()).Seconds()
	}
	return now
}

// report formats the lines that go to stderr every interval (spec
// logs-and-stats.md section 7): totals, then what was added since before.
func report(now, before sample, interval time.Duration) string {
	var b strings.Builder
	line := func(category, values string, total, delta []any) {
		fmt.Fprintf(&b, "crunchstat: %s "+values+" -- interval %.4f seconds "+values+"\n",
			append(append(append([]any{category}, total...), interval.Seconds()), delta...)...)
	}
	pair := func(category, first, second string, a, b, a0, b0 int64) {
		line(category, "%d "+first+" %d "+second, []any{a, b}, []any{a - a0, b - b0})
	}
	c, c0 := now.counters, before.counters
	pair("keepcalls", "put", "get", c.Puts, c.Gets, c0.Puts, c0.Gets)
	pair("net:keep0", "tx", "rx", c.Sent, c.Received, c0.Sent, c0.Received)
	pair("keepcache", "hit", "miss", c.Hits, c.Misses, c0.Hits, c0.Misses)
	pair("blkio:0:0", "write", "read", now.writtenBytes, now.readBytes, before.writtenBytes, before.readBytes)
	pair("fuseops", "write", "read", now.counts[opWrite], now.counts[opRead], before.counts[opWrite], before.counts[opRead])
	for i, name := range opNames {
		line("fuseop:"+name, "%d count %.6f time",
			[]any{now.counts[i], now.seconds[i]},
			[]any{now.counts[i] - before.counts[i], now.seconds[i] - before.seconds[i]})
	}
	return b.String()
}

// reportStats writes a report every interval until ctx ends.
func reportStats(ctx context.Context, s *stats, counters func() Counters, log *logger, interval time.Duration) {
	before := s.sample(counters)
	every(ctx, interval, func() {
		now := s.sample(counters)
		log.write(report(now, before, interval))
		before = now
	})
}
