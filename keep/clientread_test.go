package keep_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

func TestClientReadFaults(t *testing.T) {
	data := []byte("the quick brown fox")
	for _, tc := range []struct {
		name   string
		faults [3][]keeptest.Fault // per server, in probe order
		lost   [3]bool             // the server does not have the block
		want   string              // part of the error; "" if the read succeeds
		reqs   []int               // requests per server
		is     error
		isNot  error
	}{
		{name: "first server has it", reqs: []int{1, 0, 0}},
		{name: "last server has it", lost: [3]bool{true, true, false}, reqs: []int{1, 1, 1}},
		{
			name: "nobody has it", lost: [3]bool{true, true, true}, reqs: []int{1, 1, 1},
			want: "not found on any of 3 Keep services", is: keep.ErrNotFound,
		},
		{
			name:   "gone is not there, either",
			faults: [3][]keeptest.Fault{{keeptest.Status(410, "")}},
			lost:   [3]bool{false, true, true}, reqs: []int{1, 1, 1},
			want: "not found on any of 3 Keep services", is: keep.ErrNotFound,
		},
		{
			name:   "error that passes",
			faults: [3][]keeptest.Fault{{keeptest.Status(503, "")}},
			lost:   [3]bool{false, true, true}, reqs: []int{2, 1, 1},
		},
		{
			name:   "every temporary error",
			faults: [3][]keeptest.Fault{{keeptest.Status(499, "timeout"), keeptest.Status(429, "busy")}, {keeptest.Status(408, ""), keeptest.Status(500, "")}, {keeptest.Reset, keeptest.Truncate}},
			reqs:   []int{3, 2, 2},
		},
		{
			name:   "errors that do not pass",
			faults: [3][]keeptest.Fault{{keeptest.Status(403, "forbidden")}, {keeptest.Status(400, "bad\nnews")}},
			lost:   [3]bool{true, true, true}, reqs: []int{1, 1, 1},
			want: `HTTP 400 "bad\nnews"`, isNot: keep.ErrNotFound,
		},
		{
			name:   "damaged copy on one server",
			faults: [3][]keeptest.Fault{{keeptest.Corrupt}}, reqs: []int{1, 1, 0},
		},
		{
			name:   "damaged copies are asked for twice only",
			faults: [3][]keeptest.Fault{{keeptest.Corrupt, keeptest.Corrupt, keeptest.Corrupt}},
			lost:   [3]bool{false, true, true}, reqs: []int{2, 1, 1},
			want: "bad checksum", is: keep.ErrChecksum, isNot: keep.ErrNotFound,
		},
		{
			name:   "damaged copies are asked for twice only, others more often",
			faults: [3][]keeptest.Fault{{keeptest.Corrupt, keeptest.Corrupt, keeptest.Corrupt}, {keeptest.Status(503, ""), keeptest.Status(503, ""), keeptest.Status(503, "")}},
			lost:   [3]bool{false, true, true}, reqs: []int{2, 3, 1},
			want: "bad checksum", is: keep.ErrChecksum, isNot: keep.ErrNotFound,
		},
		{
			name:   "a page of something else is not a damaged copy",
			faults: [3][]keeptest.Fault{{portal, portal}},
			lost:   [3]bool{false, true, true}, reqs: []int{3, 1, 1},
		},
		{
			name: "retries used up",
			faults: [3][]keeptest.Fault{
				{keeptest.Reset, keeptest.Truncate, keeptest.Status(502, "checksum mismatch in stored data")},
			},
			lost: [3]bool{false, true, true}, reqs: []int{3, 1, 1},
			want: `HTTP 502 "checksum mismatch in stored data"`, isNot: keep.ErrNotFound,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list, services := servers(t, 3, data)
			var loc keep.Locator
			for i, s := range list {
				loc = s.Put(data)
				if tc.lost[i] {
					s.Delete(loc.Hash())
				}
				for _, f := range tc.faults[i] {
					s.Inject(1, f)
				}
			}
			slices.Reverse(services) // the client must sort
			client := keeptest.NewClient(t, nil, services...)
			got, err := client.ReadBlock(t.Context(), loc)
			if tc.want == "" {
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%q, %v", got, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
			if tc.isNot != nil && errors.Is(err, tc.isNot) {
				t.Errorf("%v is %v", err, tc.isNot)
			}
			if tc.reqs != nil && !slices.Equal(counts(list), tc.reqs) {
				// The transport repeats a GET by itself when a connection
				// that it had pooled is reset.
				t.Errorf("requests per server %v, want %v", counts(list), tc.reqs)
			}
		})
	}
}

func TestClientSharesFetch(t *testing.T) {
	data := []byte("shared")
	list, services := servers(t, 1, data)
	client := keeptest.NewClient(t, nil, services...)
	loc := list[0].Put(data)
	arrived, answer := make(chan struct{}), make(chan struct{})
	list[0].Inject(1, func(*keeptest.Server, http.ResponseWriter, *http.Request) bool {
		close(arrived)
		<-answer
		return false
	})
	read := func(ctx context.Context) error {
		got, err := client.ReadBlock(ctx, loc)
		if err == nil && !bytes.Equal(got, data) {
			err = errors.New("wrong data")
		}
		return err
	}
	first, leave := context.WithCancel(t.Context())
	firstDone := make(chan error, 1)
	go func() { firstDone <- read(first) }()
	<-arrived
	var wg sync.WaitGroup
	errs := make(chan error, 9)
	for range 9 {
		wg.Go(func() { errs <- read(t.Context()) })
	}
	// The one that started the fetch goes away; the others still get it.
	for !client.Waiting(loc, 10) {
	}
	leave()
	if err := <-firstDone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(answer)
	wg.Wait()
	for range 9 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := len(list[0].Requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// A reader with a good signature is not told about somebody else's bad one.
func TestClientSharedFetchOtherSignature(t *testing.T) {
	data := []byte("shared")
	list, services := servers(t, 1, data)
	client := keeptest.NewClient(t, nil, services...)
	good := list[0].Put(data)
	bad, err := keep.ParseLocator(signer.SignLocator(good.WithoutHints().String(), "other", time.Now().Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	arrived, answer := make(chan struct{}), make(chan struct{})
	list[0].Inject(1, func(*keeptest.Server, http.ResponseWriter, *http.Request) bool {
		close(arrived)
		<-answer
		return false
	})
	badDone := make(chan error, 1)
	go func() {
		_, err := client.ReadBlock(t.Context(), bad)
		badDone <- err
	}()
	<-arrived
	goodDone := make(chan error, 1)
	go func() {
		_, err := client.ReadBlock(t.Context(), good)
		goodDone <- err
	}()
	for !client.Waiting(good, 2) {
	}
	close(answer)
	if err := <-badDone; err == nil {
		t.Error("bad signature accepted")
	}
	if err := <-goodDone; err != nil {
		t.Errorf("good signature: %v", err)
	}
}

func TestClientStalledServer(t *testing.T) {
	data := []byte("stalled")
	for _, method := range []string{"read", "write"} {
		t.Run(method, func(t *testing.T) {
			list, services := servers(t, 2, data)
			list[0].Inject(-1, keeptest.Hang)
			loc := list[1].Put(data)
			client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) {
				// The other one may be slow as well, on a busy machine.
				cfg.IdleTimeout, cfg.Retries = 50*time.Millisecond, 1000
			}, services...)
			var err error
			if method == "read" {
				_, err = client.ReadBlock(t.Context(), loc)
			} else {
				_, err = client.WriteBlock(t.Context(), data, keep.WriteOptions{})
			}
			if err != nil {
				t.Error(err)
			}
			if got := counts(list); got[0] == 0 || got[1] == 0 {
				t.Errorf("requests %v", got)
			}
		})
	}
}

// A block that keeps arriving is not cut off, however long it takes altogether.
func TestClientSlowServer(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("s"), 20)
	list, services := servers(t, 1, data)
	loc := list[0].Put(data)
	// A busy machine may take too long for one byte, and is given more time.
	for idle := time.Second; ; idle *= 5 {
		list[0].Inject(1, func(s *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", "20")
			tick := time.NewTicker(idle / 10)
			defer tick.Stop()
			for i := range data {
				<-tick.C
				w.Write(data[i : i+1])
				w.(http.Flusher).Flush()
			}
			return true
		})
		client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) {
			cfg.IdleTimeout, cfg.Retries = idle, -1
		}, services...)
		_, err := client.ReadBlock(t.Context(), loc)
		if err == nil {
			return
		}
		if idle > time.Minute {
			t.Fatal(err)
		}
	}
}

func TestClientCancel(t *testing.T) {
	data := []byte("cancel")
	list, services := servers(t, 1, data)
	loc := list[0].Put(data)
	client := keeptest.NewClient(t, nil, services...)
	for _, op := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := client.ReadBlock(ctx, loc); return err },
		func(ctx context.Context) error {
			_, err := client.WriteBlock(ctx, data, keep.WriteOptions{})
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		list[0].Inject(1, func(s *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
			cancel()
			return keeptest.Hang(s, w, r)
		})
		if err := op(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

func TestClientLocalLocator(t *testing.T) {
	data := []byte("remote")
	list, services := servers(t, 2, data)
	client := keeptest.NewClient(t, nil, services...)
	remote := list[1].PutRemote(data)
	list[1].Inject(1, keeptest.Status(503, ""))
	loc, err := client.LocalLocator(t.Context(), remote)
	if err != nil || loc.IsRemote() || loc.Hash() != remote.Hash() {
		t.Fatalf("%v, %v", loc, err)
	}
	if err := signer.VerifySignature(loc.String(), keeptest.Token, time.Now()); err != nil {
		t.Error(err)
	}
	before := len(list[1].Requests())
	if same, err := client.LocalLocator(t.Context(), loc); same != loc || err != nil || len(list[1].Requests()) != before {
		t.Errorf("a local locator was sent out: %v", err)
	}
	missing, _ := keep.ParseLocator("acbd18db4cc2f85cedef654fccc4a4d8+3+Rzbbbb-0123@ffffffff")
	if _, err := client.LocalLocator(t.Context(), missing); err == nil {
		t.Error("no error")
	}
}

// memoryFile is an io.WriterAt that takes room bytes at most.
type memoryFile struct {
	data []byte
	room int
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if int(off)+len(p) > f.room {
		return 0, syscall.ENOSPC
	}
	f.data = append(f.data[:off], p...)
	return len(p), nil
}

// A block that is copied is the right one after any number of bad attempts, and
// what fails on our side is not retried.
func TestClientCopyBlock(t *testing.T) {
	srv := &keeptest.Server{}
	client := keeptest.NewClient(t, nil, srv.Start(t))
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	loc := srv.Put(data)
	for name, fault := range map[string]keeptest.Fault{
		"good": nil, "corrupt": keeptest.Corrupt, "truncated": keeptest.Truncate, "reset": keeptest.Reset, "busy": keeptest.Status(503, "busy"),
	} {
		srv.Recover()
		if fault != nil {
			srv.Inject(1, fault)
		}
		f := &memoryFile{room: len(data)}
		if err := client.CopyBlock(t.Context(), loc, f); err != nil || !bytes.Equal(f.data, data) {
			t.Errorf("%s: %d bytes, %v", name, len(f.data), err)
		}
	}
	before := len(srv.Requests())
	if err := client.CopyBlock(t.Context(), loc, &memoryFile{room: 500_000}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("full: %v", err)
	}
	if n := len(srv.Requests()) - before; n != 1 {
		t.Errorf("%d requests for a file that is full", n)
	}
	srv.Delete(loc.Hash())
	if err := client.CopyBlock(t.Context(), loc, &memoryFile{}); !errors.Is(err, keep.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

// Reading may have fewer rounds than writing, whatever the number for that.
func TestClientReadRetries(t *testing.T) {
	for name, c := range map[string]struct{ retries, read, writes, reads int }{
		"as for writing": {3, 0, 4, 4},
		"its own":        {6, 2, 7, 3},
		"write once":     {-1, 2, 1, 3},
		"read once":      {2, -1, 3, 1},
	} {
		t.Run(name, func(t *testing.T) {
			srv := &keeptest.Server{}
			delays := 0
			client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) {
				cfg.Retries, cfg.ReadRetries = c.retries, c.read
				cfg.ReadRetryDelay = func(round int) time.Duration { delays += round; return 0 }
			}, keep.Service{URL: srv.Start(t).URL, Type: "disk"})
			loc := srv.Put([]byte("foo"))
			srv.Inject(-1, keeptest.Status(503, "busy"))
			if _, err := client.WriteBlock(t.Context(), []byte("bar"), keep.WriteOptions{}); err == nil {
				t.Error("written")
			}
			if n := len(srv.Requests()); n != c.writes || delays != 0 {
				t.Errorf("%d requests to write, want %d; waited for reading %d", n, c.writes, delays)
			}
			if _, err := client.ReadBlock(t.Context(), loc); err == nil {
				t.Error("read")
			}
			if n := len(srv.Requests()) - c.writes; n != c.reads || delays != c.reads*(c.reads-1)/2 {
				t.Errorf("%d requests to read, want %d; waits %d", n, c.reads, delays)
			}
		})
	}
}
