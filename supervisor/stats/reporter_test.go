package stats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"crunch-oci/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func known(n int64) Value { return Value{N: n, Known: true} }

// run is a reporter in the bubble of a synctest, and what came out of it.
type run struct {
	*Reporter
	mu       sync.Mutex
	out      bytes.Buffer
	messages []string
}

func (r *run) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(p)
}

func start(t *testing.T, c Config) *run {
	r := new(run)
	c.Out = r
	c.Printf = func(f string, a ...any) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.messages = append(r.messages, fmt.Sprintf(f, a...))
	}
	r.Reporter = Start(t.Context(), c)
	synctest.Wait()
	return r
}

// take returns what was reported since the last time.
func (r *run) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.out.Reset()
	if r.out.Len() == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(r.out.String(), "\n"), "\n")
}

func expect(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) && len(got)+len(want) > 0 {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

func TestReportAndMaxima(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used, user atomic.Int64
		used.Store(1000)
		user.Store(int64(1500 * time.Millisecond))
		r := start(t, Config{
			RAM: 10000,
			Sources: Sources{
				Notices:    []string{"notice: reading stats from /x", "using /proc/7/net/dev"},
				Memory:     func() Memory { return Memory{Cache: known(5), RSS: known(123)} },
				CPU:        func() CPU { return CPU{User: time.Duration(user.Load()), System: time.Second, CPUs: 1.5, Known: true} },
				Disks:      func() []DiskIO { return []DiskIO{{"8:16", 10, 20}, {"8:0", 30, used.Load()}} },
				Networks:   func() []NetIO { return []NetIO{{"eth0", 40, 50}} },
				Filesystem: func() (Filesystem, bool) { return Filesystem{7, used.Load(), 3000}, true },
				Processes:  func() ([]Process, error) { return []Process{{"keepstore", 3}, {"arv-mount", 2}}, nil },
			},
		})
		expect(t, "first report", r.take(), []string{
			"notice: reading stats from /x",
			"using /proc/7/net/dev",
			"mem 5 cache 123 rss",
			"procmem 2 arv-mount 3 keepstore",
			"cpu 1.5000 user 1.0000 sys 1.50 cpus",
			"blkio:8:16 10 write 20 read",
			"blkio:8:0 30 write 1000 read",
			"net:eth0 40 tx 50 rx",
			"statfs 7 available 1000 used 3000 total",
		})
		used.Store(400)
		user.Store(int64(2 * time.Second))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		expect(t, "second report", r.take(), []string{
			"mem 5 cache 123 rss",
			"procmem 2 arv-mount 3 keepstore",
			"cpu 2.0000 user 1.0000 sys 1.50 cpus -- interval 10.0000 seconds 0.5000 user 0.0000 sys",
			"blkio:8:16 10 write 20 read -- interval 10.0000 seconds 0 write 0 read",
			"blkio:8:0 30 write 400 read -- interval 10.0000 seconds 0 write -600 read",
			"net:eth0 40 tx 50 rx -- interval 10.0000 seconds 0 tx 0 rx",
			"statfs 7 available 400 used 3000 total -- interval 10.0000 seconds -600 used",
		})
		time.Sleep(4321 * time.Millisecond)
		user.Store(int64(3 * time.Second))
		if err := r.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if got := r.take(); len(got) != 7 || got[2] != "cpu 3.0000 user 1.0000 sys 1.50 cpus -- interval 4.3210 seconds 1.0000 user 0.0000 sys" {
			t.Errorf("last report: %q", got)
		}
		expect(t, "maxima", r.Maxima(), []string{
			"Total CPU usage was 3.000000 user and 1.000000 sys on 1.50 CPUs",
			"Total disk I/O on 8:16 was 10 bytes written and 20 bytes read",
			"Total disk I/O on 8:0 was 30 bytes written and 400 bytes read",
			"Maximum disk usage was 33%, 1000/3000 bytes",
			"Maximum container memory cache usage was 5 bytes",
			"Maximum container memory rss usage was 1%, 123/10000 bytes",
			"Total network I/O on eth0 was 40 bytes written and 50 bytes read",
		})
		expect(t, "process maxima", r.ProcessMaxima(), []string{
			"Maximum arv-mount memory rss usage was 2 bytes",
			"Maximum keepstore memory rss usage was 3 bytes",
		})
	})
}

// Memory is sampled between the reports, for maxima and thresholds.
func TestThresholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rss atomic.Int64
		rss.Store(899)
		r := start(t, Config{RAM: 1000, Interval: time.Minute, Sources: Sources{
			Memory: func() Memory { return Memory{RSS: known(rss.Load())} },
		}})
		expect(t, "below", r.messages, nil)
		r.take()
		for _, n := range []int64{900, 950, 901, 1001, 1000, 10} {
			rss.Store(n)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		expect(t, "messages", r.messages, []string{
			"Container using over 90% of memory (rss 900/1000 bytes)",
			"Container using over 95% of memory (rss 950/1000 bytes)",
			"Container using over 99% of memory (rss 1001/1000 bytes)",
		})
		expect(t, "reports", r.take(), nil)
		r.Stop(t.Context())
		expect(t, "maxima", r.Maxima(), []string{"Maximum container memory rss usage was 100%, 1001/1000 bytes"})
	})
}

func TestNoThresholdsWithoutConstraint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Config{Sources: Sources{Memory: func() Memory { return Memory{RSS: known(1 << 40)} }}})
		r.Stop(t.Context())
		expect(t, "messages", r.messages, nil)
		expect(t, "maxima", r.Maxima(), []string{"Maximum container memory rss usage was 1099511627776 bytes"})
	})
}

// The kernel's record sees what falls between two samples.
func TestPeaksCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Config{RAM: 1000, Sources: Sources{Memory: func() Memory {
			return Memory{RSS: known(100), PeakRSS: known(970), Swap: known(1), PeakSwap: known(2)}
		}}})
		r.Stop(t.Context())
		expect(t, "maxima", r.Maxima(), []string{
			"Maximum container memory swap usage was 2 bytes",
			"Maximum container memory rss usage was 97%, 970/1000 bytes",
		})
	})
}

// When the group has gone before the last report, totals are those of the last
// report that had any.
func TestGroupGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Bool
		r := start(t, Config{Sources: Sources{
			Memory: func() Memory { return Memory{RSS: Value{5, !gone.Load()}} },
			CPU:    func() CPU { return CPU{User: time.Second, CPUs: 2, Known: !gone.Load()} },
			Disks: func() []DiskIO {
				if gone.Load() {
					return nil
				}
				return []DiskIO{{"8:0", 1, 2}}
			},
		}})
		r.take()
		gone.Store(true)
		time.Sleep(3 * time.Second)
		r.Stop(t.Context())
		expect(t, "last report", r.take(), nil)
		expect(t, "maxima", r.Maxima(), []string{
			"Total CPU usage was 1.000000 user and 0.000000 sys on 2.00 CPUs",
			"Total disk I/O on 8:0 was 1 bytes written and 2 bytes read",
			"Maximum container memory rss usage was 5 bytes",
		})
	})
}

// A device that appears later has nothing to be compared with at first.
func TestLateDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var disks atomic.Pointer[[]DiskIO]
		disks.Store(new([]DiskIO))
		r := start(t, Config{Interval: 2 * time.Second, Sources: Sources{Disks: func() []DiskIO { return *disks.Load() }}})
		disks.Store(&[]DiskIO{{"8:0", 1, 2}})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		expect(t, "first", r.take(), []string{"blkio:8:0 1 write 2 read"})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		expect(t, "second", r.take(), []string{"blkio:8:0 1 write 2 read -- interval 2.0000 seconds 0 write 0 read"})
		// No division by zero for the reader of the last report.
		r.Stop(t.Context())
		expect(t, "last", r.take(), []string{"blkio:8:0 1 write 2 read"})
	})
}

func TestProcessTroubleIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, Config{Interval: time.Second, Sources: Sources{
			Processes: func() ([]Process, error) { return nil, errors.New("error reading /proc/self/smaps: no luck") },
		}})
		time.Sleep(5 * time.Second)
		r.Stop(t.Context())
		expect(t, "reports", r.take(), []string{"error reading /proc/self/smaps: no luck"})
	})
}

// statfs on a dead network mount may never return.
func TestStopDoesNotWaitForAHangingSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := start(t, Config{RAM: 100, Sources: Sources{
			Memory:     func() Memory { return Memory{RSS: known(50)} },
			Filesystem: func() (f Filesystem, ok bool) { <-release; return },
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := r.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop: %v", err)
		}
		expect(t, "maxima", r.Maxima(), []string{"Maximum container memory rss usage was 50%, 50/100 bytes"})
		close(release)
		if err := r.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestContextEndsReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r := new(run)
		r.Reporter = Start(ctx, Config{Out: r, Sources: Sources{CPU: func() CPU { return CPU{} }}})
		synctest.Wait()
		r.take()
		cancel()
		synctest.Wait()
		if err := r.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		expect(t, "last report", r.take(), nil)
	})
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no luck") }

func TestWriteErrorIsReturnedByStop(t *testing.T) {
	r := Start(t.Context(), Config{Out: failingWriter{}, Sources: Sources{CPU: func() CPU { return CPU{} }}})
	if err := r.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("stop: %v", err)
	}
}
