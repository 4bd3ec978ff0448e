package localcluster

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What a supervisor's poll costs.
func BenchmarkGetContainer(b *testing.B) {
	p := setUp(b)
	_, container := p.submit(nil)
	for b.Loop() {
		p.dispatcher.must("GET", "containers/"+container+`?select=["state","priority"]`, nil)
	}
}

// From submission to Final with log and output: nine requests of three
// parties, without the blocks. Synced to disk, as a cluster that is kept is.
func BenchmarkWholeLife(b *testing.B) {
	c := start(b, Options{})
	user := clientOf(b, c, c.UserToken())
	p := parties{c, user, user.as(c.DispatcherToken()), user.as(c.SystemRootToken())}
	user.image("busybox:latest")
	log := p.saveLog("crunch-run.txt", "x")
	for b.Loop() {
		_, container := p.submit(nil)
		own := p.lock(container)
		p.update(container, obj{"state": "Running", "log": log})
		p.update(container, obj{"exit_code": 0})
		out := own.must("POST", "collections", obj{"collection": obj{"manifest_text": "", "is_trashed": true}})
		p.update(container, obj{"state": "Complete", "exit_code": 0, "log": log, "output": out["portable_data_hash"]})
	}
}

// cpuTime is what a process has used, user and system, in seconds (proc(5): the
// unit is 1/100 s on Linux).
func cpuTime(b *testing.B, pid int) float64 {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		b.Fatal("cannot read", string(stat))
	}
	return float64(user+system) / 100
}

// Requests per second of eight clients at once, beside the CPU time of the
// cluster's own process: reading a container, and submitting a request (synced to
// disk).
func BenchmarkRequests(b *testing.B) {
	info, _ := startChild(b, b.TempDir())
	user := newClient(b, info.Host, info.CA, info.User)
	user.keep = info.Keep
	user.image("busybox:latest")
	container := str(user.must("POST", "container_requests", request(nil)), "container_uuid")
	submit := encode(request(nil))
	for _, kind := range []struct {
		name, method, path string
		header             http.Header
		body               []byte
	}{
		{"read", "GET", "containers/" + container, nil, nil},
		{"poll", "GET", "containers/" + container + `?select=["state","priority"]`, nil, nil},
		{"submit", "POST", "container_requests", jsonHeader, submit},
	} {
		b.Run(kind.name, func(b *testing.B) {
			before, began := cpuTime(b, info.PID), time.Now()
			b.SetParallelism(4) // times GOMAXPROCS
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if a, err := user.try(kind.method, user.base+"/arvados/v1/"+kind.path, kind.header, kind.body); err != nil || a.status != 200 {
						b.Errorf("%d %s %v", a.status, a.body, err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "requests/s")
			b.ReportMetric((cpuTime(b, info.PID)-before)/float64(b.N)*1e6, "cpu-µs/request")
		})
	}
}
