package keep_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

func TestClientWrite(t *testing.T) {
	data := []byte("some data")
	full := keeptest.Status(http.StatusInsufficientStorage, "insufficient storage")
	for _, tc := range []struct {
		name    string
		opts    keep.WriteOptions
		classes [3][]string
		copies  [3]int
		faults  [3][]keeptest.Fault
		proxy   bool
		ro      [3]bool
		want    string // part of the error
		reqs    []int
	}{
		{name: "one copy", opts: keep.WriteOptions{Replication: 1}, reqs: []int{1, 0, 0}},
		{name: "two copies", opts: keep.WriteOptions{Replication: 2}, reqs: []int{1, 1, 0}},
		{name: "a service that stores two", opts: keep.WriteOptions{Replication: 2}, copies: [3]int{2, 1, 1}, proxy: true, reqs: []int{1, 0, 0}},
		{name: "read-only services are left out", opts: keep.WriteOptions{Replication: 1}, ro: [3]bool{true, true, false}, reqs: []int{0, 0, 1}},
		{name: "all read-only", ro: [3]bool{true, true, true}, reqs: []int{0, 0, 0}, want: "no Keep services available"},
		{
			name: "next service after a failure", opts: keep.WriteOptions{Replication: 2},
			faults: [3][]keeptest.Fault{{keeptest.Reset}}, reqs: []int{1, 1, 1},
		},
		{
			name: "failed services are tried again", opts: keep.WriteOptions{Replication: 3},
			faults: [3][]keeptest.Fault{{keeptest.Status(503, "volume unavailable"), keeptest.Status(499, "")}, {keeptest.Status(429, "")}},
			reqs:   []int{3, 2, 1},
		},
		{
			name: "a full service is not", opts: keep.WriteOptions{Replication: 3},
			faults: [3][]keeptest.Fault{{full, full}}, reqs: []int{1, 1, 1},
			want: "Could not write sufficient replicas: block 1e50210a0202497fb79bc38b6ade6c34, wanted 3, stored 2: [507] ",
		},
		{
			name: "nor is one that refuses", opts: keep.WriteOptions{Replication: 3},
			faults: [3][]keeptest.Fault{{keeptest.Status(403, "no")}}, reqs: []int{1, 1, 1},
			want: "[403] ",
		},
		{
			name:    "classes on different services",
			opts:    keep.WriteOptions{Replication: 1, StorageClasses: []string{"hot", "cold"}},
			classes: [3][]string{{"cold"}, {"cold"}, {"hot"}}, reqs: []int{1, 1, 1},
		},
		{
			name:    "a class that nobody offers",
			opts:    keep.WriteOptions{Replication: 1, StorageClasses: []string{"default", "tape"}},
			classes: [3][]string{{"default"}, {"default"}, {"default"}},
			want:    "missing in storage classes tape", reqs: []int{1, 1, 1},
		},
		{name: "too many copies", opts: keep.WriteOptions{Replication: 4}, want: "wanted 4, stored 3", reqs: []int{1, 1, 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list, services := servers(t, 3, data)
			for i, s := range list {
				s.Classes, s.Replication = tc.classes[i], tc.copies[i]
				for _, f := range tc.faults[i] {
					s.Inject(1, f)
				}
				services[i].ReadOnly = tc.ro[i]
				if tc.proxy {
					services[i].Type = "proxy"
				}
			}
			client := keeptest.NewClient(t, nil, services...)
			loc, err := client.WriteBlock(t.Context(), data, tc.opts)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want %q", err, tc.want)
				}
			} else if err != nil || loc.Hash() != md5hex(data) || loc.Size() != int64(len(data)) {
				t.Errorf("%v, %v", loc, err)
			}
			if !slices.Equal(counts(list), tc.reqs) {
				t.Errorf("requests per server %v, want %v", counts(list), tc.reqs)
			}
		})
	}
}

func TestClientWriteLimits(t *testing.T) {
	list, services := servers(t, 1, nil)
	client := keeptest.NewClient(t, nil, services...)
	if _, err := client.WriteBlock(t.Context(), make([]byte, keep.MaxBlockSize+1), keep.WriteOptions{}); !errors.Is(err, keep.ErrBlockTooBig) {
		t.Errorf("block of more than 64 MiB: %v", err)
	}
	loc, err := client.WriteBlock(t.Context(), nil, keep.WriteOptions{})
	if err != nil || loc.WithoutHints() != keep.EmptyLocator {
		t.Errorf("empty block: %v, %v", loc, err)
	}
	if r := list[0].Requests(); len(r) != 1 || r[0].Length != 0 {
		t.Errorf("%+v", r)
	}
	got, err := client.ReadBlock(t.Context(), loc)
	if err != nil || len(got) != 0 || len(list[0].Requests()) != 1 {
		t.Errorf("the empty block was asked for: %v", err)
	}
}

// A reply without storage classes comes from a server that does not know them.
func TestClientWriteWithoutClassSupport(t *testing.T) {
	var puts atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		puts.Add(1)
		fmt.Fprintf(w, "%s+%d\n", strings.TrimPrefix(r.URL.Path, "/"), r.ContentLength)
	}))
	defer srv.Close()
	client := keeptest.NewClient(t, nil, keep.Service{UUID: "a", URL: srv.URL, Type: "disk"}, keep.Service{UUID: "b", URL: srv.URL + "/", Type: "disk"})
	_, err := client.WriteBlock(t.Context(), []byte("x"), keep.WriteOptions{StorageClasses: []string{"default"}, Replication: 1})
	if err != nil || puts.Load() != 1 {
		t.Errorf("%d requests, %v", puts.Load(), err)
	}
}

// What a server says must not be believed when it names another block.
func TestClientWriteLyingServer(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "acbd18db4cc2f85cedef654fccc4a4d8+3")
	}))
	defer srv.Close()
	client := keeptest.NewClient(t, nil, keep.Service{URL: srv.URL, Type: "disk"})
	_, err := client.WriteBlock(t.Context(), []byte("bar"), keep.WriteOptions{})
	if err == nil || !strings.Contains(err.Error(), "another block") {
		t.Error(err)
	}
}

// A server may refuse before it has read the block. WriteBlock's caller is free
// to use the buffer again as soon as it returns, which the race detector checks.
func TestClientWriteRefusedEarly(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		http.Error(w, "insufficient storage", http.StatusInsufficientStorage)
	}))
	defer srv.Close()
	client := keeptest.NewClient(t, nil, keep.Service{URL: srv.URL, Type: "disk"})
	data := make([]byte, 16<<20)
	for i := range 3 {
		if _, err := client.WriteBlock(t.Context(), data, keep.WriteOptions{}); err == nil {
			t.Fatal("no error")
		}
		for j := range data {
			data[j] = byte(i)
		}
	}
}

// Keepstores get as many copies at the same time as are missing; a proxy makes
// copies itself, so there is one request at a time.
func TestClientWriteParallel(t *testing.T) {
	for kind, want := range map[string]int32{"disk": 2, "proxy": 1, "disk beside a read-only proxy": 2} {
		hold := 50 * time.Millisecond
		if want > 1 {
			hold = time.Minute
		}
		t.Run(kind, func(t *testing.T) {
			data := []byte("parallel")
			list, services := servers(t, 3, data)
			var mu sync.Mutex
			var active, most int32
			both := make(chan struct{})
			for i, s := range list {
				services[i].Type, _, _ = strings.Cut(kind, " ")
				s.Inject(-1, func(*keeptest.Server, http.ResponseWriter, *http.Request) bool {
					mu.Lock()
					active++
					if most = max(most, active); active == 2 {
						close(both)
					}
					mu.Unlock()
					defer func() { mu.Lock(); defer mu.Unlock(); active-- }()
					select {
					case <-both:
					case <-time.After(hold):
						// Nobody else came: right for a proxy.
					}
					return false
				})
			}
			if kind != "disk" && want == 2 {
				services = append(services, keep.Service{UUID: "p", URL: "http://127.0.0.1:1", Type: "proxy", ReadOnly: true})
			}
			client := keeptest.NewClient(t, nil, services...)
			if _, err := client.WriteBlock(t.Context(), data, keep.WriteOptions{Replication: 2}); err != nil {
				t.Fatal(err)
			}
			if most != want {
				t.Errorf("%d requests at a time, want %d", most, want)
			}
		})
	}
}

// A service that is listed twice is one service: two copies there are one.
func TestClientWriteServiceListedTwice(t *testing.T) {
	list, services := servers(t, 1, nil)
	twin := services[0]
	twin.UUID = "zzzzz-bi6l4-twintwintwin000"
	client := keeptest.NewClient(t, nil, services[0], twin)
	_, err := client.WriteBlock(t.Context(), []byte("x"), keep.WriteOptions{Replication: 2})
	var werr *keep.WriteError
	if !errors.As(err, &werr) || werr.Stored != 1 || len(list[0].Requests()) != 1 {
		t.Errorf("%d requests, %v", len(list[0].Requests()), err)
	}
}
