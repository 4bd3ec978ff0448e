// Package s3test is a real S3 server for tests: a versitygw over a directory,
// behind a proxy that can go wrong. scripts/versitygw.sh builds the program.
package s3test

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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"crunch-oci/internal/forkthread"
)

// Key and Secret are the server's account, Bucket is a bucket that it has.
const (
	Key    = "AKIATESTTESTTEST"
	Secret = "secretsecretsecretsecretsecretsecretsecr"
	Bucket = "blocks"
)

// Server is an S3 server that ends with its test.
type Server struct {
	URL    string
	Dir    string // of the bucket
	Client *minio.Client

	t       testing.TB
	command func() *exec.Cmd
	mu      sync.Mutex
	cmd     *exec.Cmd // protected by mu; nil: killed
	said    bytes.Buffer
	// spoil sees each request first; what it answers is not passed on.
	spoil atomic.Pointer[func(w http.ResponseWriter, r *http.Request) (handled bool)]
}

// Start starts a versitygw. It builds the program if nobody has; root is the
// repository's root directory.
func Start(t testing.TB, root string) *Server {
	t.Helper()
	out, err := exec.Command(filepath.Join(root, "scripts/versitygw.sh"), filepath.Join(root, ".build/versitygw")).Output()
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
	s := &Server{t: t, Dir: filepath.Join(base, "data", Bucket), command: func() *exec.Cmd {
		cmd := exec.Command(strings.TrimSpace(string(out)), "--port", socket, "--access", Key, "--secret", Secret, "--quiet",
			"posix", "--sidecar", filepath.Join(base, "meta"), filepath.Join(base, "data"))
		cmd.Env = []string{"HOME=" + base, "GOMAXPROCS=2"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		_ = os.Remove(socket) // of one that was killed
		return cmd
	}}
	s.run()
	t.Cleanup(s.Kill)
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
		if f := s.spoil.Load(); f != nil && (*f)(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { front.CloseClientConnections(); front.Close(); transport.CloseIdleConnections() })
	s.URL = front.URL
	u, _ := url.Parse(front.URL)
	mine := &http.Transport{}
	t.Cleanup(mine.CloseIdleConnections)
	s.Client, err = minio.New(u.Host, &minio.Options{Creds: credentials.NewStaticV4(Key, Secret, ""), Region: "us-east-1", Transport: mine})
	if err != nil {
		t.Fatal(err)
	}
	s.await(func() error {
		return s.Client.MakeBucket(context.Background(), Bucket, minio.MakeBucketOptions{})
	})
	return s
}

func (s *Server) await(ready func() error) {
	s.t.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := ready()
		if err == nil {
			return
		}
		if time.Since(start) > time.Minute {
			s.Kill()
			s.t.Fatalf("versitygw: %v\n%s", err, s.said.String())
		}
	}
}

func (s *Server) run() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd = s.command()
	s.cmd.Stdout, s.cmd.Stderr = &s.said, &s.said
	var err error
	forkthread.Do(func() { err = s.cmd.Start() })
	if err != nil {
		s.t.Fatal(err)
	}
}

// Kill ends the program in whatever it is doing. Requests are answered 502 then.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
	if s.t.Failed() && s.said.Len() > 0 {
		s.t.Logf("versitygw: %s", s.said.String())
	}
}

// Restart starts the program again after Kill.
func (s *Server) Restart() {
	s.t.Helper()
	s.run()
	s.await(func() error {
		_, err := s.Client.BucketExists(context.Background(), Bucket)
		return err
	})
}

// Fail lets f see each request first, until it is nil; what f answers is not
// passed on.
func (s *Server) Fail(f func(w http.ResponseWriter, r *http.Request) bool) {
	if f == nil {
		s.spoil.Store(nil)
		return
	}
	s.spoil.Store(&f)
}

// Error answers as S3 does.
func Error(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>no</Message></Error>`, code)
}

// Write puts an object there as another program would.
func (s *Server) Write(key string, data []byte) {
	s.t.Helper()
	if _, err := s.Client.PutObject(context.Background(), Bucket, key, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// Read returns an object's content.
func (s *Server) Read(key string) []byte {
	s.t.Helper()
	o, err := s.Client.GetObject(context.Background(), Bucket, key, minio.GetObjectOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	defer o.Close()
	data, err := io.ReadAll(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

// Keys lists the bucket, with spaces between.
func (s *Server) Keys() string {
	s.t.Helper()
	var keys []string
	for o := range s.Client.ListObjects(context.Background(), Bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			s.t.Fatal(o.Err)
		}
		keys = append(keys, o.Key)
	}
	return strings.Join(keys, " ")
}
