package gateway

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// logAt is what the controller does for a log, on a plain HTTP port: it adds
// its headers and checks the answer's.
func logAt(t *testing.T, s *Server) string {
	t.Helper()
	prefix := spec(t).Names.Prefix
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", s.Address()
			r.Out.Header.Set(headerUUID, s.config.UUID)
			r.Out.Header.Set(headerAuth, s.request)
			r.Out.Header.Set(headerSource, "/log")
			r.Out.Header.Set(headerPrefix, prefix)
		},
		ModifyResponse: func(r *http.Response) error {
			if got := r.Header[headerResponse]; len(got) != 1 || got[0] != s.response {
				return fmt.Errorf("bad %s", headerResponse)
			}
			return nil
		},
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
	})
	t.Cleanup(proxy.Close)
	return proxy.URL + prefix
}

// tool runs a program that must be installed.
func tool(t *testing.T, stdin, name string, args ...string) (stdout string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "RCLONE_CONFIG=/notfound", "LC_ALL=C")
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Minute
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %q: %w\n%s%s", name, args, err, out, &stderr)
	}
	return string(out), err
}

// A live log is a directory to WebDAV clients, whole and while it grows.
func TestRclone(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"crunch-run.txt": "", "node.json": "{}\n", "stderr.txt": strings.Repeat("hello world\n", 100000), "sub/sp ace.html": "<html></html>\n"}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o777); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := open(t, func(c *Config, _ *limits) { c.Logs = os.DirFS(dir) })
	at := []string{"--webdav-url", logAt(t, s), "--retries", "1", "--low-level-retries", "1"}
	rclone := func(args ...string) string {
		t.Helper()
		out, err := tool(t, "new", "rclone", append(args, at...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	var listed []struct {
		Path     string
		Size     int64
		IsDir    bool
		MimeType string
	}
	if err := json.Unmarshal([]byte(rclone("lsjson", "-R", ":webdav:")), &listed); err != nil {
		t.Fatal(err)
	}
	for _, l := range listed {
		if want, ok := files[l.Path]; !l.IsDir && (!ok || l.Size != int64(len(want))) || l.IsDir && l.Path != "sub" {
			t.Errorf("listed: %+v", l)
		}
	}
	if len(listed) != len(files)+1 {
		t.Errorf("%d objects listed", len(listed))
	}
	to := t.TempDir()
	rclone("copy", ":webdav:", to)
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if got := rclone("cat", "--offset", "6", "--count", "5", ":webdav:stderr.txt"); got != "world" {
		t.Errorf("a part: %q", got)
	}

	// What grows is copied as it was at some moment.
	log, err := os.OpenFile(filepath.Join(dir, "crunch-run.txt"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		defer log.Close()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				fmt.Fprintf(log, "line %d\n", i)
			}
		}
	}()
	got := rclone("cat", ":webdav:crunch-run.txt")
	close(stop)
	<-stopped
	all, err := os.ReadFile(filepath.Join(dir, "crunch-run.txt"))
	if err != nil || !strings.HasPrefix(string(all), got) || got == "" {
		t.Errorf("%d of %d bytes read, not the first ones: %v", len(got), len(all), err)
	}

	for _, write := range [][]string{
		{"rcat", ":webdav:new.txt"}, {"rcat", ":webdav:node.json"}, {"deletefile", ":webdav:node.json"},
		{"purge", ":webdav:sub"}, {"moveto", ":webdav:node.json", ":webdav:new.json"},
	} {
		if out, err := tool(t, "new", "rclone", append(write, at...)...); err == nil || !strings.Contains(err.Error(), "405") {
			t.Errorf("%q: %q, %v", write, out, err)
		}
	}
	rclone("mkdir", ":webdav:new") // takes 405 for "is there already"
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
		t.Errorf("something has been written: %v", entries)
	}
}

func TestCadaver(t *testing.T) {
	files := map[string]string{"crunch-run.txt": "", "stderr.txt": "hello world\n", "sub/x.txt": "below\n"}
	s, _ := open(t, func(c *Config, _ *limits) { c.Logs = tree(files) })
	dir := t.TempDir()
	script := fmt.Sprintf("ls\ncd sub\nls\nget x.txt %[1]s/x\ncd ..\nget stderr.txt %[1]s/err\nput %[1]s/err new.txt\ndelete stderr.txt\nmkcol new\nlock stderr.txt\nquit\n", dir)
	out, err := tool(t, script, "cadaver", logAt(t, s)+"/")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Coll:   sub", "stderr.txt                            12", "x.txt"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if n := strings.Count(out, "405 Method Not Allowed"); n != 4 {
		t.Errorf("%d of 4 attempts to write were refused:\n%s", n, out)
	}
	for name, want := range map[string]string{"x": "below\n", "err": "hello world\n"} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if got, _ := io.ReadAll(f); string(got) != want {
			t.Errorf("%s: %q", name, got)
		}
		f.Close()
	}
}
