package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// metadata is an instance metadata service.
type metadata struct {
	mu       sync.Mutex
	token    string   // the one that is valid
	tokens   int      // how many were given out
	answers  []string // to the questions to come, "STATUS BODY"; the last one stays
	requests []string
}

func (m *metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests = append(m.requests, r.Method+" "+r.URL.Path)
	switch {
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		if r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") != "21600" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		m.tokens++
		m.token = fmt.Sprint("token", m.tokens)
		fmt.Fprintln(w, m.token)
	case r.Method == http.MethodGet && r.URL.Path == "/latest/meta-data/spot/instance-action":
		answer := m.answers[0]
		if len(m.answers) > 1 {
			m.answers = m.answers[1:]
		}
		if r.Header.Get("X-aws-ec2-metadata-token") != m.token || m.token == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		status, body, _ := strings.Cut(answer, " ")
		var code int
		_, _ = fmt.Sscan(status, &code)
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// watch starts a watch for which no time passes.
func watch(t *testing.T, answers ...string) (*SpotWatch, *metadata, *[]string) {
	m := &metadata{answers: answers}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	var log []string
	w := NewSpotWatch(server.URL+"/", func(format string, args ...any) {
		log = append(log, strings.ReplaceAll(fmt.Sprintf(format, args...), server.URL, "URL"))
	})
	t.Cleanup(w.client.CloseIdleConnections)
	w.after = func(time.Duration) <-chan time.Time {
		c := make(chan time.Time, 1)
		c <- time.Time{}
		return c
	}
	return w, m, &log
}

func TestNotice(t *testing.T) {
	w, m, log := watch(t, "404 ", "404 ", `200 {"action":"terminate","time":"2017-09-18T08:22:00Z"}`)
	n, err := w.Next(t.Context())
	if err != nil || n.Action != "terminate" || n.Time.Format(time.RFC3339) != "2017-09-18T08:22:00Z" {
		t.Errorf("%+v, %v", n, err)
	}
	get := "GET /latest/meta-data/spot/instance-action"
	if want := []string{"PUT /latest/api/token", get, get, get}; !slices.Equal(m.requests, want) {
		t.Errorf("requests %q", m.requests)
	}
	if want := []string{"Checking for spot instance interruptions every 5s using instance metadata at URL"}; !slices.Equal(*log, want) {
		t.Errorf("log %q", *log)
	}
}

// A token that is no longer taken is replaced; that counts as a failure, and the
// next success makes up for it.
func TestTokenIsRefused(t *testing.T) {
	w, m, log := watch(t, "404 ", "404 ", "404 ", `200 {"action":"stop","time":"2017-09-18T08:22:00Z"}`)
	asked := 0
	after := w.after
	w.after = func(d time.Duration) <-chan time.Time {
		if asked++; asked == 2 {
			m.mu.Lock()
			m.token = "revoked"
			m.mu.Unlock()
		}
		return after(d)
	}
	if n, err := w.Next(t.Context()); err != nil || n.Action != "stop" {
		t.Errorf("%+v, %v", n, err)
	}
	if m.tokens != 2 || w.failures != 0 {
		t.Errorf("%d tokens, %d failures", m.tokens, w.failures)
	}
	if want := "Spot instance interruption check was inconclusive: 401 Unauthorized -- will retry in 5s"; !slices.Contains(*log, want) {
		t.Errorf("log %q", *log)
	}
}

// A token is renewed before it ends.
func TestTokenIsRenewed(t *testing.T) {
	w, m, _ := watch(t, "404 ", "404 ", `200 {"action":"stop","time":"2017-09-18T08:22:00Z"}`)
	began := time.Now()
	asked := 0
	w.now = func() time.Time {
		if asked++; asked > 2 { // the second check is almost six hours later
			return began.Add(tokenTTL - 30*time.Second)
		}
		return began
	}
	if _, err := w.Next(t.Context()); err != nil || m.tokens != 2 {
		t.Errorf("%d tokens, %v", m.tokens, err)
	}
}

func TestGivesUp(t *testing.T) {
	w, _, log := watch(t, "500 ", "500 ", "200 no json", "404 ", "500 ")
	if _, err := w.Next(t.Context()); !errors.Is(err, ErrGivenUp) {
		t.Errorf("error %v", err)
	}
	const retry, giveUp = " -- will retry in 5s", " -- now giving up after too many consecutive errors"
	if n := len(*log); n != 1+3+6 {
		t.Errorf("%d lines: %q", n, *log)
	}
	for i, line := range (*log)[1:] {
		end := retry
		if i == 8 {
			end = giveUp
		}
		if !strings.HasPrefix(line, "Spot instance interruption check was inconclusive: ") || !strings.HasSuffix(line, end) {
			t.Errorf("line %d: %q", i, line)
		}
	}
}

func TestStops(t *testing.T) {
	w, _, _ := watch(t, "404 ")
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	after := w.after
	w.after = func(d time.Duration) <-chan time.Time {
		if asked++; asked == 3 {
			cancel()
			return nil
		}
		return after(d)
	}
	if _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
