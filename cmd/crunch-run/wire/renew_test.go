package wire

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// What the supervisor reads itself, a container's stdin for example, it reads for
// as long as it takes, also from a collection that has got another content, or
// has been deleted, since.
func TestInputOutlivesItsSignatures(t *testing.T) {
	signer := keep.Signer{Key: "blobsigningkey", TTL: time.Hour}
	const uuid = "zzzzz-4zz18-000000000000000"
	for name, now := range map[string]string{"the same": "same", "changed": ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:other\n", "deleted": ""} {
		t.Run(name, func(t *testing.T) {
			store := &keeptest.Server{Signer: signer}
			service := store.Start(t)
			manifest := ". " + store.Put([]byte("input")).WithoutHints().String() + " 0:5:f\n"
			pdh := keep.PortableDataHash(manifest)
			if now == "same" {
				now = manifest
			}
			asked := ""
			srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
				text, expiry := manifest, time.Now().Add(time.Hour)
				switch {
				case asked == "":
					expiry = time.Now() // as it will be when the container has run for weeks
				case id == uuid && now == "":
					http.Error(w, `{"errors":["404 Not Found"]}`, http.StatusNotFound)
					return
				case id == uuid:
					text = now
				}
				asked += id + " "
				_ = json.NewEncoder(w).Encode(map[string]string{
					"uuid": uuid, "portable_data_hash": keep.PortableDataHash(text), "manifest_text": signer.SignManifest(text, keeptest.Token, expiry),
				})
			}))
			t.Cleanup(srv.Close)
			api, err := arvados.NewClient(arvados.Config{Host: strings.TrimPrefix(srv.URL, "https://"), Token: keeptest.Token, Insecure: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(api.Close)
			facts := &clusterFacts{services: keep.FixedServices{service}, replication: 1}
			a, err := facts.newAccount(api, keeptest.Token, nil, cacheSize)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { a.close() })
			coll, err := a.OpenCollection(t.Context(), uuid)
			if err != nil {
				t.Fatal(err)
			}
			f, err := coll.Open("f")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if text, err := io.ReadAll(f); err != nil || string(text) != "input" {
				t.Errorf("%q, %v", text, err)
			}
			if by := strings.TrimPrefix(asked, uuid+" "); (by == uuid+" ") != (now == manifest) || now != manifest && !strings.HasSuffix(by, pdh+" ") {
				t.Errorf("records asked for: %s", asked)
			}
		})
	}
}
