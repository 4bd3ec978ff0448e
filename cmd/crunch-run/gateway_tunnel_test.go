package main_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"crunch-oci/arvados"
)

// line is the network between a supervisor and the controller. It can be cut.
type line struct {
	net.Listener
	mu    sync.Mutex
	conns map[net.Conn]bool
	busy  sync.WaitGroup
}

func newLine(t testing.TB, to string) *line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &line{Listener: l, conns: map[net.Conn]bool{}}
	n.busy.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			n.mu.Lock()
			n.conns[near], n.conns[far] = true, true
			n.mu.Unlock()
			for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
				n.busy.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					_ = pair[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		n.cut()
		n.busy.Wait()
	})
	return n
}

// cut breaks all connections. New ones can be made.
func (n *line) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		_ = c.Close()
	}
	clear(n.conns)
}

// A tunnel that is cut comes back by itself, sessions can be opened again, and
// the log has one line about it and one about the recovery.
func TestTunnelCut(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	n := newLine(t, d.local.Host())
	d.env["ARVADOS_API_HOST"] = n.Addr().String() // for the supervisor
	e := d.run(t, "", waiting, nil)
	client := e.ssh(t, "", "")
	term := openTerminal(t, client, "sh -c 'echo begun; sleep 100000'")
	term.out.mustSay(t, "begun")
	n.cut()
	_ = within(t, "the session's end", term.Wait)
	waitFor(t, "another tunnel", func() bool {
		conn, resp := e.upgrade(t, "", "")
		conn.Close()
		return resp.StatusCode == http.StatusSwitchingProtocols
	})
	if out, _, code := inside(t, e.ssh(t, "", ""), "echo again", nil); out != "again\n" || code != 0 {
		t.Errorf("%q %d", out, code)
	}
	if got := e.container(t, e.uuid).GatewayAddress; got != "tunnel https://"+e.local.Host()+"/" {
		t.Errorf("gateway_address %q", got)
	}
	record := e.end(t)
	log := e.log(t, record, "crunch-run.txt")
	if strings.Count(log, "runTunnel: ") != 2 || !strings.Contains(log, "runTunnel: the tunnel is up again") {
		t.Errorf("log:\n%s", log)
	}
}

// The log can be read while the output is being saved, which takes long when
// Keep is slow; and what WebDAV clients copy is what is saved.
func TestLiveLogWhileSaving(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	uuid := d.submit(t, d.image, sh("echo said; head -c 70000000 /dev/zero >large"), nil) // more than a block
	e := &entered{door: d, uuid: uuid, request: d.ledger.requestOf(uuid)}
	target, err := url.Parse(d.keepURL)
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	proxy := httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	k := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && r.ContentLength > 1<<20 {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(k.Close)
	secret := d.local.GatewayAuthSecret(uuid)
	e.supervisor = d.node.start(t, run{args: []string{uuid}, env: append(d.supervisorEnv(), "GatewayAuthSecret="+secret, "ARVADOS_KEEP_SERVICES="+k.URL)})
	e.supervisor.stderr.mustSay(t, "copying \"large\"")
	status, live, _ := e.get(t, "stdout.txt", "bytes=0-")
	if status != http.StatusPartialContent || !strings.HasSuffix(live, " said\n") {
		t.Errorf("while the output is saved: %d %q", status, live)
	}
	copied := t.TempDir()
	rclone := exec.Command("rclone", "copy", "--ca-cert", e.env["SSL_CERT_FILE"], "--webdav-url",
		"https://"+e.local.Host()+"/arvados/v1/container_requests/"+e.request+"/log/"+uuid+"/", "--webdav-bearer-token", e.local.UserToken(), ":webdav:", copied)
	rclone.Env = append(cleanEnv(), "RCLONE_CONFIG=/dev/null")
	if out, err := output2(t, rclone); err != nil {
		t.Errorf("rclone: %v\n%s", err, out)
	}
	client := e.ssh(t, "", "")
	if _, text, code := inside(t, client, "id", nil); code != 1 || !strings.Contains(text, "the container has ended") {
		t.Errorf("a command after the end: %q %d", text, code)
	}
	client.Close()
	close(release)
	record := e.finished(t, e.node, e.supervisor, uuid, 0, arvados.StateComplete)
	for name, text := range e.logs(t, record) {
		got, err := os.ReadFile(copied + "/" + name)
		if err != nil || !strings.HasPrefix(text, string(got)) {
			t.Errorf("%s: copied %q, saved %q: %v", name, got, text, err)
		}
	}
	if text := e.log(t, record, "stdout.txt"); text != live {
		t.Errorf("stdout.txt: %q live, %q saved", live, text)
	}
}

// The part of a large log that is in Keep already reads like the rest.
func TestLiveLogLarge(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	const lines = 600_000 // of 131 bytes with their stamps: more than a block
	e := d.run(t, "localhost:0", sh(fmt.Sprintf("probe flood %d; sleep 100000", lines)), nil)
	const line, size = 131, lines * 131
	waitFor(t, "the last line", func() bool {
		_, _, header := e.get(t, "stdout.txt", "bytes=-0")
		return strings.HasSuffix(header.Get("Content-Range"), fmt.Sprintf("/%d", size))
	})
	live := map[string]string{}
	for _, r := range []string{"bytes=0-130", fmt.Sprintf("bytes=%d-%d", 64<<20-200, 64<<20+200), fmt.Sprintf("bytes=%d-", size-line), "bytes=-131"} {
		status, body, header := e.get(t, "stdout.txt", r)
		if status != http.StatusPartialContent || !strings.HasSuffix(header.Get("Content-Range"), fmt.Sprintf("/%d", size)) {
			t.Errorf("%s: %d %v", r, status, header)
		}
		live[r] = body
	}
	if first := fmt.Sprintf("%099d\n", 0); !strings.HasSuffix(live["bytes=0-130"], first) {
		t.Errorf("first line %q", live["bytes=0-130"])
	}
	if last := fmt.Sprintf("%099d\n", lines-1); !strings.HasSuffix(live["bytes=-131"], last) {
		t.Errorf("last line %q", live["bytes=-131"])
	}
	e.supervisor.signal(t, syscall.SIGTERM)
	if code := e.supervisor.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for r, want := range live {
		if _, body, _ := e.get(t, "stdout.txt", r); body != want {
			t.Errorf("%s: %q live, %q saved", r, want, body)
		}
	}
}
