package wire

import (
	"net/http"
	"sync"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
	"crunch-oci/keep/mount"
)

// --retries 0 means that nothing is written twice, not what the client does unless
// told otherwise. What programs read is tried again all the same.
func TestMountRetries(t *testing.T) {
	t.Setenv(clusterVariable, `{"Replication":1}`)
	later := keeptest.Status(http.StatusServiceUnavailable, "later")
	block := []byte("some data")
	put := func(store keep.BlockStore, _ keep.Locator) error {
		_, err := store.WriteBlock(t.Context(), block, keep.WriteOptions{})
		return err
	}
	get := func(store keep.BlockStore, loc keep.Locator) error {
		_, err := store.ReadBlock(t.Context(), loc)
		return err
	}
	var all sync.WaitGroup
	for _, c := range []struct {
		retries  string
		do       func(keep.BlockStore, keep.Locator) error
		faults   int
		requests int
		fails    bool
	}{
		{"0", put, 1, 1, true},
		{"0", put, 0, 1, false},
		{"1", put, 1, 2, false},
		{"1", put, 2, 2, true},
		{"0", get, 1, 2, false},
	} {
		server := new(keeptest.Server)
		service := server.Start(t)
		loc := server.Put(block)
		for range c.faults {
			server.Inject(1, later)
		}
		opts, err := mount.ParseArgs([]string{"--foreground", "--mount-tmp", "tmp0", "--retries", c.retries, t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		backend, err := ConnectMount(t.Context(), opts, arvados.Config{
			Host: "127.0.0.1:1", Token: keeptest.Token, KeepServices: []string{service.URL},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := backend.Close(); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			err := c.do(backend.Blocks.(keep.BlockStore), loc)
			if n := len(server.Requests()); n != c.requests || (err != nil) != c.fails {
				t.Errorf("--retries %s, %d failures: %d requests, error %v", c.retries, c.faults, n, err)
			}
		})
	}
	all.Wait()
}
