package wire

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/supervisor/joblog"
)

// The log of a job that runs for weeks: its first blocks were signed long ago.
func TestLogSignaturesAreRenewed(t *testing.T) {
	const ttl = 336 * time.Hour
	manifest := func(expiry string) string {
		return ". acbd18db4cc2f85cedef654fccc4a4d8+3+A0123456789abcdef0123456789abcdef01234567@" + expiry + " 0:3:stdout.txt\n"
	}
	soon, later := manifest("6b16a41b"), manifest("6c16a41b")
	for _, c := range []struct {
		name   string
		age    time.Duration
		last   bool
		status int
		gets   int
		want   string
	}{
		{name: "old", age: ttl/2 + time.Minute, status: 200, gets: 1, want: later},
		{name: "young", age: ttl/2 - time.Hour, status: 200, gets: 0, want: soon},
		{name: "refused", age: ttl, status: 403, gets: 3, want: soon},
		{name: "final", age: ttl, last: true, status: 200, gets: 0, want: soon},
	} {
		t.Run(c.name, func(t *testing.T) {
			gets := 0
			srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet {
					gets++
					w.WriteHeader(c.status)
				}
				_ = json.NewEncoder(w).Encode(map[string]string{
					"uuid": "zzzzz-4zz18-000000000000000", "portable_data_hash": keep.PortableDataHash(later), "manifest_text": later,
				})
			}))
			t.Cleanup(srv.Close)
			api, err := arvados.NewClient(arvados.Config{Host: strings.TrimPrefix(srv.URL, "https://"), Token: "token", Insecure: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(api.Close)
			files, err := keep.NewCollection(soon, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { files.Close() })
			s := &saver{api: api, files: files, ttl: ttl, signed: time.Now().Add(-c.age)}
			for range 3 {
				_, err := s.UpdateCollection(t.Context(), "zzzzz-4zz18-000000000000000", joblog.Request{Collection: joblog.Collection{IsTrashed: c.last}})
				if err != nil {
					t.Fatal(err)
				}
			}
			got, err := files.MarshalManifest(t.Context())
			if err != nil || got != c.want {
				t.Errorf("manifest %q, %v", got, err)
			}
			if gets != c.gets {
				t.Errorf("record read %d times, want %d", gets, c.gets)
			}
		})
	}
}

// Two minutes without Keep cost a job nothing, and a Keep that stays away not
// many more.
func TestKeepDelay(t *testing.T) {
	for range 1000 {
		var sum, read time.Duration
		for round := range KeepRetries {
			sum += keepDelay(round + 1)
		}
		for round := range readRetries {
			read += readDelay(round + 1)
		}
		if sum < 2*time.Minute || sum > 5*time.Minute || read < 2*time.Minute || read > 5*time.Minute {
			t.Fatal(sum, read)
		}
	}
}
