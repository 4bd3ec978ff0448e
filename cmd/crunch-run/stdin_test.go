package main_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/keep"
)

// A container reads its standard input for longer than the signatures in the
// collection's record last: the record is read again, and not a byte is lost.
func TestStdinOutlivesItsSignatures(t *testing.T) {
	t.Parallel()
	c := startCluster(t, newNode(t))
	image := c.storeTools(t)
	// More than a pipe holds, so that the second block is not wanted before the
	// container reads on.
	first, second := strings.Repeat("first\n", 200_000), "second\n"
	var locs []string
	for _, text := range []string{first, second} {
		loc, err := c.blocks.WriteBlock(t.Context(), []byte(text), keep.WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		locs = append(locs, loc.String())
	}
	manifest := fmt.Sprintf(". %s 0:%d:input\n", strings.Join(locs, " "), len(first)+len(second))
	input, err := c.user.CreateCollection(t.Context(), map[string]any{"manifest_text": manifest}, true, "portable_data_hash")
	if err != nil {
		t.Fatal(err)
	}
	for name, sooner := range map[string]struct {
		expiry string // that the second block's signature has at first
		refuse bool   // only Keep knows that it has expired
	}{
		"by the node's clock": {fmt.Sprintf("@%08x", time.Now().Add(-time.Minute).Unix()), false},
		"by Keep's clock":     {fmt.Sprintf("@%08x", time.Now().Add(time.Hour).Unix()), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			p := newFaultProxy(t, n, c, func(string) trouble { return noTrouble })
			var mu sync.Mutex
			records, refused, got := 0, 0, 0
			p.meddleWith(func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				switch block := "/" + hashOf(second) + "+"; {
				case strings.HasSuffix(r.URL.Path, "/collections/"+input.PortableDataHash):
					if records++; records > 1 {
						return false
					}
					answer := httptest.NewRecorder()
					p.serve(answer, r, "https://"+c.env["ARVADOS_API_HOST"], "record", nil)
					at := strings.Index(answer.Body.String(), block[1:])
					if at < 0 {
						t.Errorf("record: %d %s", answer.Code, answer.Body)
						return false
					}
					text := answer.Body.String()
					expiry := at + strings.IndexByte(text[at:], '@')
					maps.Copy(w.Header(), answer.Header())
					w.WriteHeader(answer.Code)
					fmt.Fprint(w, text[:expiry]+sooner.expiry+text[expiry+len(sooner.expiry):])
					return true
				case strings.HasPrefix(r.URL.Path, block) && strings.HasSuffix(r.URL.Path, sooner.expiry):
					refused++
					http.Error(w, "expired signature", http.StatusUnauthorized)
					return true
				case strings.HasPrefix(r.URL.Path, block):
					got++
				}
				return false
			})
			uuid := c.submit(t, image, sh(untilTold+"md5sum"), attrs{"mounts": attrs{
				"/out":  attrs{"kind": "tmp", "capacity": 1 << 20},
				"stdin": attrs{"kind": "collection", "portable_data_hash": input.PortableDataHash, "path": "input"},
			}})
			supervisor := n.start(t, run{args: []string{uuid}, env: p.env})
			insideContainer(t, n)
			release(t, n)
			record := c.finished(t, n, supervisor, uuid, 0, arvados.StateComplete)
			if out := stamped(t, c.log(t, record, "stdout.txt")); out != hashOf(first+second)+"  -\n" {
				t.Errorf("stdout %q", out)
			}
			mu.Lock()
			defer mu.Unlock()
			// Who fetches ahead may be refused as well.
			if records != 2 || got != 1 || sooner.refuse && refused == 0 {
				t.Errorf("record read %d times, block refused %d times and read %d times", records, refused, got)
			}
		})
	}
}
