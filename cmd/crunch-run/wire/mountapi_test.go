package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
	"crunch-oci/keep/mount"
)

// A mount needs little of an API server, shows all that it says of a collection,
// and lists projects page by page, however short the pages are.
func TestMountAPI(t *testing.T) {
	const project, coll = "zzzzz-j7d0g-000000000000001", "zzzzz-4zz18-00000000000000%d"
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query, _ := url.QueryUnescape(r.URL.RawQuery)
		switch path := strings.TrimPrefix(r.URL.Path, "/arvados/v1/"); {
		case strings.HasPrefix(path, "/discovery"):
			fmt.Fprint(w, `{"basePath":"/arvados/v1/","blobSignatureTtl":100,"defaultCollectionReplication":3}`)
		case path == "collections/"+fmt.Sprintf(coll, 1):
			fmt.Fprint(w, `{"uuid":"`+fmt.Sprintf(coll, 1)+`","manifest_text":"","portable_data_hash":"d41d8cd98f00b204e9800998ecf8427e+0",
				"properties":{"n":12345678901234567890},"etag":"e","never_heard_of":[1]}`)
		case path == "groups/"+project:
			fmt.Fprint(w, `{"uuid":"`+project+`","name":null,"group_class":"project","modified_at":"2026-01-02T03:04:05Z"}`)
		case path == "groups/"+project+"/contents" && strings.Contains(query, "arvados#group"):
			fmt.Fprint(w, `{"items":[]}`)
		case path == "groups/"+project+"/contents": // two to a page
			var items []string
			for n := 1; n <= 5 && len(items) < 2; n++ {
				uuid := fmt.Sprintf(coll, n)
				if !strings.Contains(query, `">"`) || uuid > query[strings.Index(query, `">"`)+5:][:27] {
					items = append(items, `{"uuid":"`+uuid+`","name":"c"}`)
				}
			}
			fmt.Fprintf(w, `{"items":[%s]}`, strings.Join(items, ","))
		default:
			http.Error(w, `{"errors":["no such thing"]}`, http.StatusNotFound)
		}
	}))
	t.Cleanup(srv.Close)
	cfg := arvados.Config{Host: strings.TrimPrefix(srv.URL, "https://"), Token: "token", Insecure: true, KeepServices: []string{srv.URL}}
	backend, err := ConnectMount(t.Context(), mount.Options{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	rec, err := backend.API.Collection(t.Context(), fmt.Sprintf(coll, 1))
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := json.Marshal(rec.Fields); !strings.Contains(string(text), `"etag":"e","never_heard_of":[1]`) ||
		!strings.Contains(string(text), `{"n":12345678901234567890}`) || strings.Contains(string(text), "manifest_text") {
		t.Errorf("record: %s", text)
	}
	if _, err := backend.API.Collection(t.Context(), fmt.Sprintf(coll, 2)); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if p, err := backend.Projects.Project(t.Context(), project); err != nil || p.ModifiedAt.Year() != 2026 {
		t.Errorf("project: %+v %v", p, err)
	}
	items, err := backend.Projects.Contents(t.Context(), project)
	var uuids []string
	for _, it := range items {
		uuids = append(uuids, it.UUID)
	}
	if err != nil || len(uuids) != 5 || !slices.IsSorted(uuids) {
		t.Errorf("project has %q, %v", uuids, err)
	}
}

// A container that asks for a very small cache in memory has its blocks fetched
// once each, not once for each read.
func TestMountSmallCache(t *testing.T) {
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/discovery") {
			http.Error(w, `{"errors":["no such thing"]}`, http.StatusNotFound)
			return
		}
		fmt.Fprint(w, `{"basePath":"/arvados/v1/"}`)
	}))
	t.Cleanup(api.Close)
	store := &keeptest.Server{}
	service := store.Start(t)
	backend, err := ConnectMount(t.Context(), mount.Options{CacheBytes: 1000}, arvados.Config{
		Host: strings.TrimPrefix(api.URL, "https://"), Token: keeptest.Token, Insecure: true, KeepServices: []string{service.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	loc := store.Put(bytes.Repeat([]byte("0123456789"), 1000))
	reader := backend.Blocks.(keep.BlockRangeReader)
	for off := int64(0); off < 10_000; off += 1000 {
		p := make([]byte, 1000)
		if _, err := reader.ReadBlockAt(t.Context(), loc, p, off); err != nil || !strings.HasPrefix(string(p), "0123456789") {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	if n := len(store.Requests()); n != 1 {
		t.Errorf("%d requests for one block", n)
	}
}
