package keepstore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"crunch-oci/internal/forkthread"
)

const (
	s3Key    = "AKIATESTTESTTEST"
	s3Secret = "secretsecretsecretsecretsecretsecretsecr"
	s3Bucket = "blocks"
)

// gateway is a real S3 server over a directory, behind a proxy that can go wrong.
type gateway struct {
	t      testing.TB
	url    string
	dir    string // of the bucket
	client *minio.Client
	// spoil sees each request first; what it answers is not passed on.
	spoil atomic.Pointer[func(w http.ResponseWriter, r *http.Request) (handled bool)]
}

// newGateway starts a versitygw.
func newGateway(t testing.TB) *gateway {
	t.Helper()
	out, err := exec.Command("../../scripts/versitygw.sh", "../../.build/versitygw").Output()
	if err != nil {
		t.Fatalf("build versitygw: %v", err)
	}
	// A socket's path must be short.
	base, err := os.MkdirTemp("", "s3-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	for _, d := range []string{"data", "meta"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(base, "s")
	cmd := exec.Command(strings.TrimSpace(string(out)), "--port", socket, "--access", s3Key, "--secret", s3Secret, "--quiet",
		"posix", "--sidecar", filepath.Join(base, "meta"), filepath.Join(base, "data"))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Env = []string{"HOME=" + base, "GOMAXPROCS=2"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() && said.Len() > 0 {
			t.Logf("versitygw: %s", said.String())
		}
	})
	g := &gateway{t: t, dir: filepath.Join(base, "data", s3Bucket)}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "s3", r.In.Host // the host is signed
		},
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := g.spoil.Load(); f != nil && (*f)(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { front.CloseClientConnections(); front.Close(); transport.CloseIdleConnections() })
	g.url = front.URL
	u, _ := url.Parse(front.URL)
	mine := &http.Transport{}
	t.Cleanup(mine.CloseIdleConnections)
	g.client, err = minio.New(u.Host, &minio.Options{Creds: credentials.NewStaticV4(s3Key, s3Secret, ""), Region: "us-east-1", Transport: mine})
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if err = g.client.MakeBucket(context.Background(), s3Bucket, minio.MakeBucketOptions{}); err == nil {
			return g
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("versitygw: %v\n%s", err, said.String())
		}
	}
}

// volume is the configuration of a volume in the gateway's bucket.
func (g *gateway) volume(edit func(*S3Config)) VolumeConfig {
	c := &S3Config{Bucket: s3Bucket, Endpoint: g.url, AccessKeyID: s3Key, SecretAccessKey: s3Secret}
	if edit != nil {
		edit(c)
	}
	return VolumeConfig{UUID: "zzzzz-nyw5e-000000000000000", S3: c}
}

// store starts a block server with such a volume.
func (g *gateway) store(edit func(*Config, *S3Config)) *cluster {
	g.t.Helper()
	return start(g.t, func(cfg *Config) {
		cfg.Volumes = []VolumeConfig{g.volume(nil)}
		cfg.BlobDeleteConcurrency = 0 // tests empty the trash themselves
		if edit != nil {
			edit(cfg, cfg.Volumes[0].S3)
		}
	})
}

func (g *gateway) fail(f func(w http.ResponseWriter, r *http.Request) bool) {
	if f == nil {
		g.spoil.Store(nil)
		return
	}
	g.spoil.Store(&f)
}

// s3Error answers as S3 does.
func s3Error(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>no</Message></Error>`, code)
}

// write puts an object there as another program would.
func (g *gateway) write(key string, data []byte) {
	g.t.Helper()
	if _, err := g.client.PutObject(context.Background(), s3Bucket, key, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) read(key string) []byte {
	g.t.Helper()
	o, err := g.client.GetObject(context.Background(), s3Bucket, key, minio.GetObjectOptions{})
	if err != nil {
		g.t.Fatal(err)
	}
	defer o.Close()
	data, err := io.ReadAll(o)
	if err != nil {
		g.t.Fatal(err)
	}
	return data
}

// keys lists the bucket.
func (g *gateway) keys() string {
	g.t.Helper()
	var keys []string
	for o := range g.client.ListObjects(context.Background(), s3Bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			g.t.Fatal(o.Err)
		}
		keys = append(keys, o.Key)
	}
	return strings.Join(keys, " ")
}

// age makes an object older.
func (g *gateway) age(key string, by time.Duration) {
	g.t.Helper()
	at := time.Now().Add(-by)
	if err := os.Chtimes(filepath.Join(g.dir, key), at, at); err != nil {
		g.t.Fatal(err)
	}
}
