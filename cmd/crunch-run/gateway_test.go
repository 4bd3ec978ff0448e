package main_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/localcluster"
)

// door is a cluster whose secrets the test knows, with a node: what is needed to
// look into a container that runs.
type door struct {
	*cluster
	local *localcluster.Cluster
	node  *node
	image string
	web   *http.Client // trusts the cluster, finds it under any name
}

// newDoor starts a cluster in this process.
func newDoor(t testing.TB) *door {
	t.Helper()
	n := newNode(t)
	local, err := localcluster.Start(t.Context(), localcluster.Options{Dir: filepath.Join(n.dir, "cluster"), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := local.Close(); err != nil {
			t.Error(err)
		}
	})
	d := &door{cluster: &cluster{env: map[string]string{}, ledger: &ledger{requests: map[string]string{}}}, local: local, node: n}
	for _, kv := range append(local.Env(), "ARVADOS_DISPATCHER_TOKEN="+local.DispatcherToken()) {
		k, v, _ := strings.Cut(kv, "=")
		d.env[k] = v
	}
	d.connect(t)
	pem, err := os.ReadFile(local.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 100}
	tr.DialContext = toAddress(local.Host())
	d.web = &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(tr.CloseIdleConnections)
	d.image = d.storeTools(t)
	return d
}

// entered is a container that runs, with a gateway.
type entered struct {
	*door
	uuid, request string
	supervisor    *process
}

// run starts a supervisor, with GatewayAddress as it is given ("" is a tunnel),
// on a node of its own, and
// waits until its container runs and can be reached.
func (d *door) run(t testing.TB, address string, command []string, other attrs) *entered {
	t.Helper()
	uuid := d.submit(t, d.image, command, other)
	own := *d
	own.node = newNode(t)
	e := &entered{door: &own, uuid: uuid, request: d.ledger.requestOf(uuid)}
	secret := d.local.GatewayAuthSecret(uuid)
	d.ledger.hide(secret)
	env := append(d.supervisorEnv(), "GatewayAuthSecret="+secret, "GatewayAddress="+address)
	e.supervisor = e.node.start(t, run{args: []string{uuid}, env: env})
	e.supervisor.stderr.mustSay(t, "Waiting for container to finish")
	if address == "" {
		waitFor(t, "the tunnel", func() bool { return strings.HasPrefix(d.container(t, uuid).GatewayAddress, "tunnel ") })
	}
	return e
}

// end cancels the container and checks that nothing is left.
func (e *entered) end(t testing.TB) arvados.Container {
	t.Helper()
	e.supervisor.signal(t, syscall.SIGTERM)
	return e.finished(t, e.node, e.supervisor, e.uuid, 0, arvados.StateCancelled)
}

// get asks for a file of the log, as arvados-client does.
func (e *entered) get(t testing.TB, name, byteRange string) (int, string, http.Header) {
	t.Helper()
	status, body, header, err := e.ask(t.Context(), "GET", "https://"+e.local.Host()+"/arvados/v1/container_requests/"+e.request+"/log/"+e.uuid+"/"+name,
		http.Header{"Range": {byteRange}})
	if err != nil {
		t.Fatal(err)
	}
	return status, body, header
}

func (e *entered) ask(ctx context.Context, method, url string, header http.Header) (int, string, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, "", nil, err
	}
	req.Header = header.Clone()
	if strings.Contains(url, "/arvados/v1/") {
		req.Header.Set("Authorization", "Bearer "+e.local.UserToken())
	}
	resp, err := e.web.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), resp.Header, err
}

// A user follows the log while the container writes it: what has been read goes
// on in what is saved, without a gap, also while the output is being saved.
func TestLiveLog(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	for how, address := range map[string]string{"tunnel": "", "direct": "localhost:0"} {
		t.Run(how, func(t *testing.T) {
			e := d.run(t, address, sh(`for i in $(seq 30); do echo line $i; sleep 0.02; done; echo last >&2; while ! [ -e go ]; do sleep 0.05; done`), nil)
			if status, body, header := e.get(t, "stderr.txt", "bytes=-0"); status != http.StatusPartialContent || body != "" ||
				!strings.HasPrefix(header.Get("Content-Range"), "bytes ") {
				t.Errorf("size: %d %q %v", status, body, header)
			}
			got := map[string]string{}
			follow := func() {
				for _, name := range []string{"stdout.txt", "stderr.txt", "crunch-run.txt"} {
					status, body, _ := e.get(t, name, fmt.Sprintf("bytes=%d-", len(got[name])))
					switch {
					case status == http.StatusPartialContent, status == http.StatusOK && got[name] == "":
						got[name] += body
					case status != http.StatusRequestedRangeNotSatisfiable:
						t.Fatalf("%s from %d: %d %q", name, len(got[name]), status, body)
					}
				}
			}
			waitFor(t, "the last lines", func() bool {
				follow()
				return strings.HasSuffix(got["stderr.txt"], " last\n") && strings.HasSuffix(got["stdout.txt"], " line 30\n")
			})
			record := e.end(t)
			for name, text := range e.logs(t, record) {
				if !strings.HasPrefix(text, got[name]) || name == "stdout.txt" && got[name] != text {
					t.Errorf("%s: followed %q, saved %q", name, got[name], text)
				}
			}
			if !strings.Contains(got["stdout.txt"], " line 30\n") || !strings.Contains(got["crunch-run.txt"], "gateway server listening at ") {
				t.Errorf("followed %q", got)
			}
			// The same question is now answered from the collection.
			if status, body, _ := e.get(t, "stdout.txt", "bytes=0-"); status != http.StatusPartialContent || body != got["stdout.txt"] {
				t.Errorf("after the end: %d %q", status, body)
			}
		})
	}
}

// toAddress dials one address, whatever is asked for.
func toAddress(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
}

// Who gets shells is a setting of the embedded cluster.
func TestShellAccess(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for who, want := range map[string][2]bool{"": {true, true}, "user": {true, true}, "admin": {true, false}, "none": {false, false}} {
		args := []string{"cluster", "--dir", filepath.Join(n.dir, "cluster")}
		if who != "" {
			args = append(args, "--shell-access", who)
		}
		p := n.start(t, run{args: args, env: []string{"CRUNCH_RUN_STORE_DIR="}})
		c := connectCluster(t, p)
		var config struct {
			Containers struct{ ShellAccess struct{ Admin, User bool } }
		}
		if err := c.user.Call(t.Context(), http.MethodGet, "config", nil, &config); err != nil {
			t.Fatal(err)
		}
		if a := config.Containers.ShellAccess; a.Admin != want[0] || a.User != want[1] {
			t.Errorf("--shell-access %s: %+v", who, a)
		}
		p.signal(t, syscall.SIGTERM)
		p.wait(t)
	}
	if r := n.run(t, "cluster", "--dir", n.dir, "--shell-access", "everybody"); r.code != 2 {
		t.Errorf("a value that is none: %d %s", r.code, r.stderr)
	}
}
