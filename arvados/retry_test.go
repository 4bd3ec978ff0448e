package arvados

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// vectors reads one key of the specification's vectors.
func vectors(t *testing.T, dst any, path ...string) {
	t.Helper()
	data, err := os.ReadFile("../testdata/spec/arvados-api.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range path {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		data = m[key]
	}
	if err := json.Unmarshal(data, dst); err != nil {
		t.Fatalf("%v: %v", path, err)
	}
}

func TestRetriedStatus(t *testing.T) {
	var cases []struct {
		Status  int
		Retried bool
	}
	vectors(t, &cases, "vectors", "retry")
	if len(cases) == 0 {
		t.Fatal("no vectors")
	}
	for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
		for _, tc := range cases {
			t.Run(fmt.Sprint(method, tc.Status), func(t *testing.T) {
				attempts := 0
				c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
					if attempts++; attempts == 1 {
						w.WriteHeader(tc.Status) // and an empty body, as the real 503
						return
					}
					io.WriteString(w, `{}`)
				})
				err := c.Call(context.Background(), method, "containers", map[string]any{"a": "b"}, nil)
				if retried := attempts > 1; retried != tc.Retried {
					t.Fatalf("%d attempts, want retried = %v", attempts, tc.Retried)
				}
				if tc.Retried != (err == nil) || err != nil && !IsStatus(err, tc.Status) {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestOnlyOKIsSuccess(t *testing.T) {
	for _, status := range []int{201, 202, 204, 206, 304} {
		c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			if status < 204 || status == 206 {
				io.WriteString(w, `{"uuid":"x"}`)
			}
		})
		var dst struct{}
		if err := c.Call(context.Background(), "GET", "x", nil, &dst); !IsStatus(err, status) {
			t.Errorf("status %d: %v", status, err)
		}
		if err := c.Call(context.Background(), "DELETE", "x", nil, nil); (err == nil) != (status == 204) {
			t.Errorf("status %d, no record expected: %v", status, err)
		}
	}
}

// sent is what a server sees of an attempt.
type sent struct{ method, target, id, override, contentType, body string }

func TestAttemptsAreIdentical(t *testing.T) {
	var got []sent
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, sent{r.Method, r.RequestURI, r.Header.Get("X-Request-Id"), r.Header.Get("X-Http-Method-Override"), r.Header.Get("Content-Type"), string(body)})
		if len(got)%4 != 0 {
			http.Error(w, "try again", http.StatusBadGateway)
			return
		}
		io.WriteString(w, `{"uuid":"zzzzz-dz642-000000000000001"}`)
	})
	for range 2 {
		if err := c.UpdateContainer(context.Background(), "zzzzz-dz642-000000000000001", map[string]any{"exit_code": 0, "log": "x+1"}); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != 8 {
		t.Fatalf("%d attempts", len(got))
	}
	for i, s := range got {
		if s != got[i/4*4] {
			t.Errorf("attempt %d differs: %+v\n%+v", i, s, got[i/4*4])
		}
	}
	if got[0].id == got[4].id {
		t.Errorf("two calls with one request id %q", got[0].id)
	}
}

func TestBudgetEndsWithLastAnswer(t *testing.T) {
	attempts := 0
	var retries []Retry
	c, clock, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		attempts++
		w.WriteHeader(500)
		fmt.Fprintf(w, `{"errors":["answer %d (%s)"]}`, attempts, r.Header.Get("X-Request-Id"))
	}, func(cfg *Config) { cfg.OnRetry = func(r Retry) { retries = append(retries, r) } })
	began := clock.Now()
	err := c.UpdateContainer(context.Background(), "zzzzz-dz642-000000000000001", map[string]any{"state": "Complete"})
	var e *Error
	if !errors.As(err, &e) || e.Status != 500 || !strings.Contains(err.Error(), fmt.Sprintf("answer %d", attempts)) {
		t.Fatal(err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("the budget shows as a deadline:", err)
	}
	if e.Attempts != attempts || len(retries) != attempts-1 {
		t.Errorf("%d attempts, error says %d, %d retries were told", attempts, e.Attempts, len(retries))
	}
	took := clock.Now().Sub(began)
	if took > DefaultBudget || took < DefaultBudget-waitCap(DefaultBudget) {
		t.Errorf("gave up after %s", took)
	}
	if strings.Count(err.Error(), "req-") != 1 || !strings.Contains(err.Error(), e.RequestID) {
		t.Errorf("request id: %v", err)
	}
	for i, d := range clock.sleeps() {
		// Never less than a second, never more than the cap, and growing.
		if longest := min(1<<i, 60); d < time.Second || d > time.Duration(longest)*time.Second {
			t.Errorf("wait before retry %d: %s", i, d)
		}
	}
}

func TestWait(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	date := func(d time.Duration, layout string) string { return now.Add(d).Format(layout) }
	for _, tc := range []struct {
		name       string
		n          int
		status     int
		retryAfter string
		random     float64
		want       time.Duration
	}{
		{"first", 0, 500, "", 0.99, time.Second},
		{"second, shortest", 1, 500, "", 0, time.Second},
		{"second, longest", 1, 500, "", 1, 2 * time.Second},
		{"fourth", 3, 0, "", 0.5, 4500 * time.Millisecond},
		{"capped", 6, 502, "", 1, time.Minute},
		{"far", 31, 502, "", 0.99, time.Minute},
		{"seconds", 0, 503, "17", 0, 17 * time.Second},
		{"with 429", 0, 429, " 17 ", 0, 17 * time.Second},
		{"not with 500", 0, 500, "17", 0, time.Second},
		{"seconds capped", 0, 503, "7200", 0, time.Minute},
		{"endless", 0, 503, "99999999999999999999999", 0, time.Minute},
		{"overflowing", 0, 503, "9223372036854775807", 0, time.Minute},
		{"zero", 1, 503, "0", 1, 2 * time.Second},
		{"negative", 1, 503, "-5", 1, 2 * time.Second},
		{"fraction", 1, 503, "1.5", 1, 2 * time.Second},
		{"RFC 1123", 0, 503, date(30*time.Second, http.TimeFormat), 0, 30 * time.Second},
		{"RFC 850", 0, 503, date(30*time.Second, "Monday, 02-Jan-06 15:04:05 GMT"), 0, 30 * time.Second},
		{"asctime", 0, 503, date(30*time.Second, time.ANSIC), 0, 30 * time.Second},
		{"date capped", 0, 503, date(time.Hour, http.TimeFormat), 0, time.Minute},
		{"date past", 1, 503, date(-time.Hour, http.TimeFormat), 1, 2 * time.Second},
		{"nonsense", 1, 503, "soon", 1, 2 * time.Second},
	} {
		got := wait(tc.n, &Error{Status: tc.status, retryAfter: tc.retryAfter}, DefaultBudget, now, tc.random)
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	if d := wait(0, &Error{Status: 503, retryAfter: "5"}, 5*time.Second, now, 0); d != 500*time.Millisecond {
		t.Errorf("budget 5 s: wait %s", d)
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	attempts := 0
	c, clock, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		if attempts++; attempts == 1 {
			w.Header().Set("Retry-After", "42")
			w.WriteHeader(503)
			return
		}
		io.WriteString(w, `{}`)
	})
	if err := c.Call(context.Background(), "GET", "config", nil, nil); err != nil {
		t.Fatal(err)
	}
	if s := clock.sleeps(); len(s) != 1 || s[0] != 42*time.Second {
		t.Fatal(s)
	}
}

func TestNoMoreThan32Retries(t *testing.T) {
	attempts := 0
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		attempts++
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(503)
	})
	err := c.Call(context.Background(), "GET", "config", nil, nil)
	if attempts != 33 || !IsStatus(err, 503) {
		t.Fatal(attempts, err)
	}
}

func TestAuxiliaryCallsGiveUpSooner(t *testing.T) {
	c, clock, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) })
	began := clock.Now()
	if _, err := c.GetCollection(context.Background(), "d41d8cd98f00b204e9800998ecf8427e+0"); !IsStatus(err, 500) {
		t.Fatal(err)
	}
	if took := clock.Now().Sub(began); took > AuxiliaryBudget || took < AuxiliaryBudget-waitCap(AuxiliaryBudget) {
		t.Fatal(took)
	}
	began = clock.Now()
	c.WithBudget(25*time.Minute).Call(context.Background(), "GET", "x", nil, nil)
	if took := clock.Now().Sub(began); took > 25*time.Minute || took < 22*time.Minute {
		t.Fatal(took)
	}
}
