package localcluster

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeGateway is a container's gateway as the controller sees it: it knows the
// secret, and answers with what it was asked.
type fakeGateway struct {
	*httptest.Server
	address string // for gateway_address
}

func hmacHex(key string, message []byte) string {
	h := hmac.New(sha256.New, []byte(key))
	h.Write(message)
	return hex.EncodeToString(h.Sum(nil))
}

func startGateway(t *testing.T, secret string, answer http.HandlerFunc) *fakeGateway {
	t.Helper()
	g := &fakeGateway{}
	g.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request := hmacHex(secret, g.TLS.Certificates[0].Certificate[0])
		if r.Header.Get("X-Arvados-Authorization") != request {
			http.Error(w, "bad X-Arvados-Authorization header", http.StatusUnauthorized)
			return
		}
		w.Header().Set("X-Arvados-Authorization-Response", hmacHex(secret, []byte(request)))
		if r.Header.Get("Upgrade") != "ssh" {
			answer(w, r)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(buffered, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: ssh\r\nX-Arvados-Authorization-Response: %s\r\n\r\nSSH for %s",
			hmacHex(secret, []byte(request)), r.PostFormValue("login_username"))
		_ = buffered.Flush()
	}))
	g.StartTLS()
	t.Cleanup(g.Close)
	_, port, _ := net.SplitHostPort(g.Listener.Addr().String())
	g.address = "localhost:" + port
	return g
}

// shell asks for a shell as arvados-client does and returns the status, and what
// came behind it.
func (c *client) shell(path string, header string) (int, string) {
	c.t.Helper()
	tr := c.http.Transport.(*http.Transport)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(c.base, "https://"), tr.TLSClientConfig)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	body := "detach_keys=ctrl-%5D%2Cctrl-%5D&login_username=root&no_forward=false"
	fmt.Fprintf(conn, "POST %s%s HTTP/1.1\r\nHost: x\r\nUpgrade: ssh\r\n%sContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
		c.base, path, header, len(body), body)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, &http.Request{Method: "POST"})
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		text, err := io.ReadAll(in)
		if err != nil {
			c.t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// Who gets a shell, and what they are told, in the order of the checks.
func TestShellAccess(t *testing.T) {
	for _, access := range []ShellAccess{{}, {Admin: true}, {User: true}, {Admin: true, User: true}} {
		t.Run(fmt.Sprintf("%+v", access), func(t *testing.T) {
			t.Parallel()
			c := start(t, Options{NoSync: true, ShellAccess: &access})
			user := clientOf(t, c, c.UserToken())
			p := parties{c, user, user.as(c.DispatcherToken()), user.as(c.SystemRootToken())}
			user.image("busybox:latest")
			_, container := p.submit(nil)
			path := "/arvados/v1/connect/" + container + "/ssh"
			ask := func(token string, want int, text string) {
				t.Helper()
				header := "Authorization: Bearer " + token + "\r\n"
				if token == "" {
					header = ""
				}
				if status, body := user.shell(path, header); status != want || !strings.Contains(body, text) {
					t.Errorf("%d %q, want %d %q", status, body, want, text)
				}
			}
			allowed := func(open int, text string) {
				t.Helper()
				for _, v := range []struct {
					token string
					ok    bool
				}{{c.UserToken(), access.User}, {c.SystemRootToken(), access.Admin}} {
					if v.ok {
						ask(v.token, open, text)
					} else if !access.User {
						ask(v.token, 503, "shell access is disabled in config")
					} else { // an admin whose requests these are not
						ask(v.token, 403, "permission denied")
					}
				}
			}
			ask("", 401, "Not logged in")
			ask("wrong", 401, "Not logged in")
			allowed(503, `container is not running yet (state is \"Queued\")`)
			p.lock(container)
			allowed(503, `container is not running yet (state is \"Locked\")`)
			p.update(container, obj{"state": "Running", "gateway_address": ""})
			allowed(503, "container is running but gateway is not available")
			p.update(container, obj{"gateway_address": "127.0.0.1:1"})
			allowed(503, "container is running but tunnel is down")
			if started := p.user.must("GET", "containers/"+container, nil)["interactive_session_started"]; started != false {
				t.Error("interactive_session_started without a session")
			}
			g := startGateway(t, c.GatewayAuthSecret(container), nil)
			p.update(container, obj{"gateway_address": g.address})
			allowed(101, "SSH for root")
			started := p.user.must("GET", "containers/"+container, nil)["interactive_session_started"]
			if started != (access.User || access.Admin) {
				t.Errorf("interactive_session_started: %v", started)
			}
			path = "/arvados/v1/containers/" + container + "/ssh"
			allowed(101, "SSH for root")
			stranger := startGateway(t, "another secret", nil)
			p.update(container, obj{"gateway_address": stranger.address})
			allowed(502, "unexpected status 401 Unauthorized")
			p.update(container, obj{"state": "Complete", "exit_code": 0})
			allowed(410, "container has ended")
			path = "/arvados/v1/connect/zzzzz-dz642-000000000000000/ssh"
			ask(c.UserToken(), 404, "Path not found")
		})
	}
}

// A container that serves other users' requests too is nobody's alone.
func TestShellSharedContainer(t *testing.T) {
	p := setUp(t)
	r, container := p.submit(nil)
	p.lock(container)
	p.update(container, obj{"state": "Running", "gateway_address": ""})
	path := "/arvados/v1/connect/" + container + "/ssh"
	token := "Authorization: Bearer " + p.user.token + "\r\n"
	if status, body := p.user.shell(path, token); status != 503 {
		t.Errorf("%d %s", status, body)
	}
	p.root.must("PUT", "container_requests/"+str(r, "uuid"), obj{"container_request": obj{"priority": 7}})
	if status, body := p.user.shell(path, token); status != 403 {
		t.Errorf("after an admin changed the request: %d %s", status, body)
	}
	if a := p.user.send("GET", p.user.base+path, nil, nil); a.status != 405 {
		t.Errorf("GET: %d", a.status)
	}
	if a := p.user.send("POST", p.user.base+path, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, []byte(strings.Repeat("x", 1<<20))); a.status != 413 {
		t.Errorf("large form: %d", a.status)
	}
}

// anyHost makes a client whose requests reach the cluster whatever their host
// name says.
func (c *client) anyHost() *http.Client {
	tr := c.http.Transport.(*http.Transport).Clone()
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(c.base, "https://"))
	}
	c.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Services in containers, under names of their own.
func TestPorts(t *testing.T) {
	p := setUp(t)
	r, container := p.submit(obj{"published_ports": obj{
		"80": obj{"access": "public", "label": "web", "initial_path": "/start?x=1"}, "81": obj{"access": "private", "label": "mine"}}})
	var seen *http.Request
	g := startGateway(t, p.c.GatewayAuthSecret(container), func(w http.ResponseWriter, r *http.Request) {
		seen = r
		w.Header().Set("X-Service", "yes")
		fmt.Fprintf(w, "port %s", r.Header.Get("X-Arvados-Container-Target-Port"))
	})
	web := p.user.anyHost()
	_, apiPort, _ := net.SplitHostPort(p.c.Host())
	ask := func(host, path string, header http.Header) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequest("GET", "https://"+host+".containers.localhost:"+apiPort+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
	check := func(host string, header http.Header, status int, text string) *http.Response {
		t.Helper()
		resp, body := ask(host, "/", header)
		if resp.StatusCode != status || !strings.Contains(body, text) {
			t.Errorf("%s: %s %q, want %d %q", host, resp.Status, body, status, text)
		}
		return resp
	}
	cookie := func(token string) http.Header {
		return http.Header{"Cookie": {"other=1; arvados_api_token=" + base64.URLEncoding.EncodeToString([]byte(token)) + "; more=2"}}
	}
	check(container+"-80", nil, 503, `container is not running yet (state is \"Queued\")`)
	p.lock(container)
	running := p.update(container, obj{"state": "Running", "gateway_address": g.address})
	base := "https://" + container + "-80.containers.localhost:" + apiPort + "/"
	ports := running["published_ports"].(map[string]any)["80"].(map[string]any)
	if ports["base_url"] != base || ports["initial_url"] != base+"start?x=1" || ports["access"] != "public" {
		t.Errorf("published port: %v", ports)
	}

	// Public: no token, and the user's is not for the service.
	resp := check(container+"-80", cookie(p.user.token), 200, "port 80")
	if seen.Header.Get("Cookie") != "other=1; more=2" || seen.Header.Get("X-Forwarded-For") != "127.0.0.1" || !strings.HasPrefix(seen.Header.Get("X-Request-Id"), "req-") ||
		seen.Host != strings.TrimSuffix(strings.TrimPrefix(base, "https://"), "/") {
		t.Errorf("the gateway got %q %v", seen.Host, seen.Header)
	}
	if c := resp.Cookies(); len(c) != 1 || c[0].Name != "arvados_container_uuid" || c[0].Value != container || resp.Header.Get("X-Service") != "yes" || resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("answer: %v", resp.Header)
	}
	check(str(r, "uuid")+"-80", nil, 200, "port 80")
	// Private, published or not.
	for _, port := range []string{"81", "8888"} {
		check(container+"-"+port, nil, 401, "authorization required")
		check(container+"-"+port, cookie("wrong"), 401, "authorization required")
		check(container+"-"+port, cookie(p.user.token), 200, "port "+port)
		check(container+"-"+port, cookie(p.c.AdminToken()), 200, "port "+port)
		check(container+"-"+port, http.Header{"Authorization": {"Bearer " + p.user.token}}, 200, "port "+port)
		if seen.Header.Get("Authorization") != "" {
			t.Error("the user's token reached the service")
		}
		check(container+"-"+port, http.Header{"Authorization": {"Bearer app-token"}, "Cookie": cookie(p.user.token)["Cookie"]}, 200, "port "+port)
		if seen.Header.Get("Authorization") != "Bearer app-token" {
			t.Error("the service's own token was lost")
		}
	}
	for port, status := range map[string]int{"0": 400, "65536": 400, "99999": 400} {
		check(container+"-"+port, cookie(p.user.token), status, "is not a port")
	}
	// The token in an address becomes a cookie.
	resp, _ = ask(container+"-81", "//evil/x?a=1&arvados_api_token="+url.QueryEscape(p.user.token), nil)
	if c := resp.Cookies(); resp.StatusCode != 303 || resp.Header.Get("Location") != "/evil/x?a=1" || len(c) != 1 || c[0].Name != "arvados_api_token" || !c[0].HttpOnly || !c[0].Secure {
		t.Errorf("token in the address: %s %v", resp.Status, resp.Header)
	} else {
		check(container+"-81", http.Header{"Cookie": {c[0].Name + "=" + c[0].Value}}, 200, "port 81")
	}
	// A name of one's own.
	p.user.must("POST", "links", obj{"link": obj{"link_class": "published_port", "name": "myservice", "head_uuid": r["uuid"], "properties": obj{"port": 80}}})
	check("myservice", nil, 200, "port 80")
	check("nosuchservice", nil, 404, "no service is called")
	check("zzzzz-dz642-000000000000000-80", nil, 404, "not found")

	g.Close()
	check(container+"-80", nil, 502, "proxy error: connect to the container gateway")
	p.update(container, obj{"gateway_address": ""})
	check(container+"-80", nil, 503, "gateway is not available")
	p.update(container, obj{"state": "Cancelled"})
	check(container+"-80", nil, 410, "container has ended")
}

func TestPublishedPortsChecked(t *testing.T) {
	p := setUp(t)
	for _, bad := range []obj{
		{"0": obj{"access": "public", "label": "x"}}, {"http": obj{"access": "public", "label": "x"}}, {"080": obj{"access": "public", "label": "x"}},
		{"80": obj{"access": "open", "label": "x"}}, {"80": obj{"access": "public"}}, {"80": obj{"label": "x"}}, {"80": obj{"access": "public", "label": ""}},
		{"80": obj{"access": "public", "label": "x", "color": "red"}}, {"80": obj{"access": "public", "label": "x", "initial_path": 1}}, {"80": "public"},
	} {
		p.user.want(422, "POST", "container_requests", request(obj{"published_ports": bad}))
	}
}

// The log of a running container comes from its gateway; of one that has ended,
// from the collection.
func TestLiveLog(t *testing.T) {
	p := setUp(t)
	r, container := p.submit(nil)
	base := "/arvados/v1/container_requests/" + str(r, "uuid") + "/log"
	var seen *http.Request
	g := startGateway(t, p.c.GatewayAuthSecret(container), func(w http.ResponseWriter, r *http.Request) {
		seen = r
		w.Header().Set("Etag", `"live"`)
		w.WriteHeader(http.StatusPartialContent)
		fmt.Fprint(w, "live")
	})
	check := func(method, path string, status int, text string) {
		t.Helper()
		a := p.user.send(method, p.user.base+base+path, http.Header{"Range": {"bytes=3-"}}, nil)
		if a.status != status || text != "*" && string(a.body) != text {
			t.Errorf("%s %s: %d %q, want %d %q", method, path, a.status, a.body, status, text)
		}
	}
	p.lock(container)
	p.update(container, obj{"state": "Running", "log": p.saveLog("stderr.txt", "not live\n")})
	check("GET", "/"+container+"/stderr.txt", 206, " live\n")
	p.update(container, obj{"gateway_address": g.address})
	check("GET", "/"+container+"/a%20b.txt?x=1", 206, "live")
	if seen.URL.RequestURI() != base+"/"+container+"/a%20b.txt?x=1" || seen.Header.Get("Range") != "bytes=3-" ||
		seen.Header.Get("X-Webdav-Source") != "/log" || seen.Header.Get("X-Webdav-Prefix") != base+"/"+container {
		t.Errorf("the gateway got %s %v", seen.URL.RequestURI(), seen.Header)
	}
	check("PROPFIND", "/"+container, 206, "live")
	check("OPTIONS", "/"+container+"/", 206, "live")
	check("PUT", "/"+container+"/x", 405, "*")
	check("GET", "/log%20for%20container%20"+container+"/stderr.txt", 206, " live\n")
	check("GET", "/"+container+"x", 404, "*")
	g.Close()
	a := p.user.send("GET", p.user.base+base+"/"+container+"/stderr.txt", nil, nil)
	if a.status != 503 || !strings.Contains(string(a.body), "proxy error: ") {
		t.Errorf("gateway is gone: %d %s", a.status, a.body)
	}
	p.update(container, obj{"state": "Complete", "exit_code": 0, "log": p.saveLog("stderr.txt", "saved\n")})
	check("GET", "/"+container+"/stderr.txt", 206, "ed\n")
}

// The raw requests of supervisor and client, as they are in the vectors.
func TestRawRequests(t *testing.T) {
	var v struct {
		Tunnel struct{ Request string }
	}
	text, err := os.ReadFile("../testdata/spec/gateway.json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	var update struct {
		Raw struct {
			Method, Path, Body string
			Headers            map[string]string
		} `json:"raw_request"`
	}
	text, err = os.ReadFile("../testdata/spec/arvados-api.json")
	if err == nil {
		err = json.Unmarshal(text, &update)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := setUp(t)
	_, container := p.submit(nil)
	p.lock(container)
	pem, err := os.ReadFile(p.c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	send := func(raw string) (*http.Response, string) {
		t.Helper()
		conn, err := tls.Dial("tcp", p.c.Host(), &tls.Config{RootCAs: pool})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(conn, raw); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == 101 {
			return resp, ""
		}
		body, _ := io.ReadAll(resp.Body)
		return resp, string(body)
	}
	const uuid, secret = "zzzzz-dz642-gatewaytest0001", "5e1e84362078fc86c93883d47f9a5504983a8c15102216df8fb64eb06b1f7199"
	tunnel := strings.NewReplacer("{api_host}", p.c.Host(), "{token}", p.c.DispatcherToken(), uuid, container).Replace(v.Tunnel.Request)
	if resp, body := send(tunnel); resp.StatusCode != 401 || body != `{"errors":["authentication error"]}`+"\n" {
		t.Errorf("tunnel with another secret: %s %q", resp.Status, body)
	}
	tunnel = strings.Replace(tunnel, secret, p.c.GatewayAuthSecret(container), 1)
	for _, path := range []string{"connect", "containers"} {
		resp, _ := send(strings.Replace(tunnel, "connect", path, 1))
		if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "tunnel" || resp.Header.Get("Connection") != "upgrade" ||
			resp.Header.Get("X-Arvados-Internal-Url") != "https://"+p.c.Host()+"/" {
			t.Errorf("tunnel: %s %v", resp.Status, resp.Header)
		}
	}

	raw := update.Raw.Method + " " + update.Raw.Path + " HTTP/1.1\r\nHost: " + p.c.Host() + "\r\n"
	for _, k := range slices.Sorted(maps.Keys(update.Raw.Headers)) {
		raw += k + ": " + update.Raw.Headers[k] + "\r\n"
	}
	raw += fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(update.Raw.Body), update.Raw.Body)
	raw = strings.NewReplacer("xmpl1-dz642-7k2v9q4m1x8c3b5", container, "examplesystemroottoken0000000000000000000000000001", p.c.DispatcherToken()).Replace(raw)
	if resp, body := send(raw); resp.StatusCode != 200 || body != `{"uuid":"`+container+`"}`+"\n" || resp.Header.Get("X-Request-Id") != "req-0123456789abcdefghij" {
		t.Errorf("update: %s %q", resp.Status, body)
	}
	if got := p.user.must("GET", "containers/"+container, nil); got["gateway_address"] != "10.0.0.17:41234" || got["state"] != "Running" {
		t.Errorf("record: %v", got)
	}
}
