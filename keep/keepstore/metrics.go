package keepstore

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strconv"
	"sync"
)

// metrics counts requests by method and status.
type metrics struct {
	mu       sync.Mutex
	requests map[requestKind]int64
	sent     int64 // body bytes
}

type requestKind struct{ method, code string }

func (m *metrics) count(method string, status int, sent int64) {
	switch method {
	case "GET", "HEAD", "PUT", "TOUCH", "DELETE", "OPTIONS":
	default:
		method = "other" // a client must not be able to make the table grow
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.requests == nil {
		m.requests = make(map[requestKind]int64)
	}
	m.requests[requestKind{method, strconv.Itoa(status)}]++
	m.sent += sent
}

// sample is one line of /metrics.
type sample struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Value  int64             `json:"value"`
}

func (s *Server) samples() []sample {
	s.metrics.mu.Lock()
	var kinds []requestKind
	for k := range s.metrics.requests {
		kinds = append(kinds, k)
	}
	sort.Slice(kinds, func(i, j int) bool {
		a, b := kinds[i], kinds[j]
		return a.method < b.method || a.method == b.method && a.code < b.code
	})
	var out []sample
	for _, k := range kinds {
		out = append(out, sample{"arvados_keepstore_requests_total",
			map[string]string{"code": k.code, "method": k.method}, s.metrics.requests[k]})
	}
	out = append(out, sample{"arvados_keepstore_response_body_bytes_total", nil, s.metrics.sent})
	s.metrics.mu.Unlock()
	return append(out,
		sample{"arvados_concurrent_requests", nil, int64(len(s.limit.running))},
		sample{"arvados_max_concurrent_requests", nil, int64(cap(s.limit.running))},
		sample{"arvados_queued_requests", nil, s.limit.queued.Load()},
		sample{"arvados_keepstore_trash_queue_pending_entries", nil, s.trash.pending()},
		sample{"arvados_keepstore_trash_queue_inprogress_entries", nil, s.trash.working.Load()},
		sample{"arvados_keepstore_pull_queue_pending_entries", nil, s.pull.pending()},
		sample{"arvados_keepstore_pull_queue_inprogress_entries", nil, s.pull.working.Load()},
		sample{"arvados_keepstore_bufferpool_max_buffers", nil, int64(cap(s.buffers.slots))},
		sample{"arvados_keepstore_bufferpool_inuse_buffers", nil, int64(len(s.buffers.slots))})
}

// serveMetrics answers GET /metrics in the text format of Prometheus and
// /metrics.json with the same as JSON.
func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if t := s.cfg.ManagementToken; t != "" {
		found := tokens(r)
		if len(found) == 0 {
			http.Error(w, errUnauthorized.text, errUnauthorized.status)
			return
		}
		if !sameToken(found[0], t) {
			http.Error(w, errForbidden.text, errForbidden.status)
			return
		}
	}
	if r.URL.Path == "/metrics.json" {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.samples())
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for _, m := range s.samples() {
		if len(m.Labels) > 0 {
			fmt.Fprintf(w, "%s{code=%q,method=%q} %d\n", m.Name, m.Labels["code"], m.Labels["method"], m.Value)
		} else {
			fmt.Fprintf(w, "%s %d\n", m.Name, m.Value)
		}
	}
}
