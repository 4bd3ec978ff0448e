package main_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// stoppedCluster is one whose API and Keep take connections and do not answer.
func stoppedCluster(t testing.TB, c *cluster) (goOn func()) {
	t.Helper()
	c.process.signal(t, syscall.SIGSTOP)
	done := false
	goOn = func() {
		if !done {
			done = true
			c.process.signal(t, syscall.SIGCONT)
		}
	}
	t.Cleanup(goOn) // it is to end by itself
	return goOn
}

// timeToStop sends TERM and returns the time until no process of the container
// is alive.
func timeToStop(t testing.TB, n *node, p *process) time.Duration {
	t.Helper()
	// Looking for processes takes longer than what is measured: their numbers
	// are found before.
	var pids []int
	for _, f := range n.processes() {
		if f.contained {
			pids = append(pids, f.pid)
		}
	}
	if len(pids) == 0 {
		t.Fatal("there is no container")
	}
	alive := func(pid int) bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return false
		}
		rest := stat[bytes.LastIndexByte(stat, ')')+1:]
		return len(rest) > 1 && rest[1] != 'Z' && rest[1] != 'X'
	}
	began := time.Now()
	p.signal(t, syscall.SIGTERM)
	for slices.ContainsFunc(pids, alive) {
		if time.Since(began) > patience {
			t.Fatal("the container is still alive")
		}
		time.Sleep(time.Millisecond) // there is nothing to wait on for another's grandchildren
	}
	return time.Since(began)
}

// hangingReader starts a container that writes output and then reads an input
// that does not come, because neither Keep nor the API answers any more.
func hangingReader(t testing.TB, n *node, c *cluster, image, input string) (uuid string, p *process, goOn func()) {
	t.Helper()
	script := "echo partial >f; head -c 1 /in/a.txt; touch begun; " + untilTold + "while :; do echo chatter; done & exec cat /in/b.txt"
	uuid = c.submit(t, image, sh(script), withInput(input))
	p = c.supervise(t, n, uuid)
	p.stderr.mustSay(t, "Waiting for container to finish")
	awaitFile(t, n, "out/begun")
	goOn = stoppedCluster(t, c)
	release(t, n)
	waitFor(t, "the reader", func() bool {
		return slices.ContainsFunc(n.processes(), func(f foundProcess) bool { return f.contained && strings.Contains(f.command, "cat /in/b.txt") })
	})
	return uuid, p, goOn
}

func inputOfTwo(t testing.TB, c *cluster) string {
	return c.store(t, map[string][]byte{"a.txt": bytes.Repeat([]byte("A"), 1<<20), "b.txt": bytes.Repeat([]byte("B"), 80<<20)})
}

// A container is stopped at once, also while it reads and writes what neither
// Keep nor the API takes or gives.
func TestStopWhileNothingAnswers(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image, input := c.storeTools(t), inputOfTwo(t, c)
	promptly(t, 5*time.Second, func() time.Duration {
		uuid, p, goOn := hangingReader(t, n, c, image, input)
		// Usually some milliseconds: see BenchmarkStop. A wait for anything of the
		// cluster would be far above the limit.
		took := timeToStop(t, n, p)
		goOn()
		record := c.finished(t, n, p, uuid, 0, arvados.StateCancelled)
		if record.ExitCode == nil || *record.ExitCode != 137 {
			t.Errorf("exit code %v", record.ExitCode)
		}
		log := c.log(t, record, "crunch-run.txt")
		mustSayInOrder(t, log, "caught signal: terminated\n", "stopping container\n", "Container exited with status code 137 (signal 9, SIGKILL)\n", "partial output is in the trashed collection ", "Cancelled\n")
		return took
	})
}

// promptly fails the test if something takes longer than limit every time: once,
// the machine may have been busy.
func promptly(t testing.TB, limit time.Duration, do func() time.Duration) {
	t.Helper()
	var all []time.Duration
	for range 3 {
		took := do()
		if took <= limit {
			return
		}
		all = append(all, took)
	}
	t.Errorf("it took %v, each more than %v", all, limit)
}

// A supervisor that waits for a Keep that nobody can find is told to stop, and
// gives the container back at once: its log, which it cannot save either, must not
// hold it up.
func TestStopWhileKeepCannotBeFound(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	proxy := newFaultProxy(t, n, c, func(string) trouble { return noTrouble })
	asked := make(chan struct{}, 1)
	proxy.meddleWith(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/keep_services/accessible") {
			return false
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		_, _ = io.WriteString(w, `{"items":{"not":"a list"}}`)
		return true
	})
	// It is three seconds for the log; without the signal they are thirty.
	promptly(t, 20*time.Second, func() time.Duration {
		uuid := c.submit(t, image, sh("true"), nil)
		for len(asked) > 0 {
			<-asked
		}
		p := n.start(t, run{args: []string{uuid}, env: proxy.env})
		select {
		case <-asked:
		case <-p.done:
			t.Fatalf("it has ended:\n%s", p.stderr.String())
		}
		began := time.Now()
		p.signal(t, syscall.SIGTERM)
		c.finished(t, n, p, uuid, 0, arvados.StateQueued)
		return time.Since(began)
	})
}

// BenchmarkStop measures the time from TERM to the death of the container's last
// process, in a cluster that answers, and in one that does not.
func BenchmarkStop(b *testing.B) {
	for name, hang := range map[string]bool{"idle": false, "hanging": true} {
		b.Run(name, func(b *testing.B) {
			n := newNode(b)
			c := startCluster(b, n)
			image, input := c.storeTools(b), inputOfTwo(b, c)
			var took []time.Duration
			for b.Loop() {
				var uuid string
				var p *process
				goOn := func() {}
				if hang {
					uuid, p, goOn = hangingReader(b, n, c, image, input)
				} else {
					uuid = c.submit(b, image, sh("sleep 1000"), nil)
					p = c.supervise(b, n, uuid)
					p.stderr.mustSay(b, "Waiting for container to finish")
					insideContainer(b, n)
				}
				took = append(took, timeToStop(b, n, p))
				goOn()
				c.finished(b, n, p, uuid, 0, arvados.StateCancelled)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
			b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "ms-max")
		})
	}
}
