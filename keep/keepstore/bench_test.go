package keepstore

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// benchBlock is 64 MiB whose first bytes are its number's.
type benchBlock struct {
	hash string
	head [8]byte
}

func (k benchBlock) body(tail []byte) io.Reader {
	return io.MultiReader(bytes.NewReader(k.head[:]), bytes.NewReader(tail))
}

// benchPeer is a server of blocks under /HASH.
type benchPeer struct {
	url  string
	path func(k benchBlock) string // of the request
	file func(k benchBlock) string
}

// plainFiles stores and serves files, durably too, and knows nothing of hashes.
func plainFiles(b *testing.B) benchPeer {
	root := b.TempDir()
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := filepath.Join(root, filepath.Base(r.URL.Path))
		if r.Method == http.MethodGet {
			http.ServeFile(w, r, name)
			return
		}
		f, err := os.Create(name + ".tmp")
		if err == nil {
			defer f.Close()
			_, err = io.Copy(f, r.Body)
		}
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			err = os.Rename(name+".tmp", name)
		}
		if err == nil {
			err = (&directory{}).syncDir(root)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	b.Cleanup(hs.Close)
	return benchPeer{hs.URL, func(k benchBlock) string { return k.hash }, func(k benchBlock) string { return filepath.Join(root, k.hash) }}
}

func ourStore(b *testing.B) benchPeer {
	c := start(b, func(cfg *Config) { cfg.NoSync, cfg.MaxKeepBlobBuffers = false, 8 })
	d := dir(c.srv.mounts[0])
	return benchPeer{c.url, func(k benchBlock) string { return c.srv.sign(fmt.Sprintf("%s+%d", k.hash, maxBlockSize), userToken) },
		func(k benchBlock) string { return d.path(k.hash) }}
}

// cpuTime is what this process, client and server, has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkServer stores and reads blocks of 64 MiB through loopback, from the
// page cache, beside a plain file server. Each iteration is as many blocks as
// are in flight.
func BenchmarkServer(b *testing.B) {
	tail := randomBytes(11, maxBlockSize-8)
	blocks := make([]benchBlock, 8)
	for i := range blocks {
		blocks[i].head[0] = byte(i)
		sum := md5.New()
		_, _ = io.Copy(sum, blocks[i].body(tail))
		blocks[i].hash = hex.EncodeToString(sum.Sum(nil))
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8, WriteBufferSize: 256 << 10}, Timeout: 10 * time.Minute}
	b.Cleanup(client.CloseIdleConnections)
	do := func(b *testing.B, method string, p benchPeer, k benchBlock) {
		var body io.Reader
		path := k.hash
		if method == http.MethodPut {
			body = k.body(tail)
		} else {
			path = p.path(k)
		}
		req, err := http.NewRequest(method, p.url+"/"+path, body)
		if err != nil {
			b.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+userToken)
		if body != nil {
			req.ContentLength = maxBlockSize
		}
		resp, err := client.Do(req)
		if err != nil {
			b.Error(err)
			return
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			b.Error(resp.Status, err)
		}
	}
	for _, method := range []string{http.MethodPut, http.MethodGet} {
		for _, n := range []int{1, 8} {
			for _, peer := range []struct {
				name string
				make func(*testing.B) benchPeer
			}{{"keepstore", ourStore}, {"files", plainFiles}} {
				b.Run(fmt.Sprintf("%s/%d/%s", method, n, peer.name), func(b *testing.B) {
					p := peer.make(b)
					all := func(method string) {
						var wg sync.WaitGroup
						for _, k := range blocks[:n] {
							wg.Go(func() { do(b, method, p, k) })
						}
						wg.Wait()
					}
					if method == http.MethodGet {
						all(http.MethodPut)
					}
					b.SetBytes(int64(n) * maxBlockSize)
					before := cpuTime()
					for b.Loop() {
						all(method)
						if method == http.MethodPut {
							b.StopTimer()
							for _, k := range blocks[:n] {
								if err := os.Remove(p.file(k)); err != nil {
									b.Fatal(err)
								}
							}
							b.StartTimer()
						}
					}
					b.ReportMetric(float64((cpuTime()-before).Milliseconds())/float64(b.N*n), "cpu-ms/block")
				})
			}
		}
	}
}
