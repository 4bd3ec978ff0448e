package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"
)

// tree is a log collection of a past moment.
func tree(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, content := range files {
		m[name] = &fstest.MapFile{Data: []byte(content), ModTime: time.Date(2026, 11, 23, 12, 0, 0, 5, time.UTC)}
	}
	return m
}

func TestAuthorizationVectors(t *testing.T) {
	v := spec(t)
	if len(v.AuthSecret) == 0 || len(v.CertAuth) == 0 {
		t.Fatal("no vectors")
	}
	for _, c := range v.AuthSecret {
		if got := AuthSecret(c.Token, c.UUID); got != c.Secret {
			t.Errorf("secret of %s: %s", c.UUID, got)
		}
	}
	for _, c := range dispatcherSecrets(t) {
		if got := AuthSecret(c.Token, c.UUID); got != c.Secret {
			t.Errorf("the dispatcher's secret of %s: %s", c.UUID, got)
		}
	}
	for _, c := range v.CertAuth {
		request, response := Authorization(c.Secret, c.DER)
		if request != c.Request || response != c.Response {
			t.Errorf("%s: %s, %s", c.Name, request, response)
		}
	}
}

// play sends one case of the vectors and compares the answer.
func play(t *testing.T, c *controller, d dispatchCase) reply {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: x\r\n", d.Method, d.Path)
	for name, value := range d.Headers {
		fmt.Fprintf(&b, "%s: %s\r\n", name, value)
	}
	if d.Method == http.MethodPost {
		b.WriteString("Content-Length: 0\r\n")
	}
	l := c.connect()
	defer l.Close()
	r := c.on(l, b.String()+"\r\n")
	if d.Status != 0 && r.StatusCode != d.Status {
		t.Errorf("status %s, %q", r.Status, r.body)
	}
	if d.Body != nil && r.body != *d.Body {
		t.Errorf("body %q", r.body)
	}
	for name, value := range d.Reply {
		if r.Header.Get(name) != value {
			t.Errorf("%s: %q", name, r.Header.Get(name))
		}
	}
	checkAuth(t, r, l, d.AuthResponse)
	checkVary(t, r)
	if r.StatusCode >= 400 && r.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("an error's type is %q", r.Header.Get("Content-Type"))
	}
	return r
}

func checkVary(t *testing.T, r reply) {
	t.Helper()
	if got := r.Header["Vary"]; len(got) != 1 || got[0] != "X-Arvados-Authorization, X-Arvados-Container-Gateway-Uuid, X-Arvados-Container-Target-Port, X-Webdav-Prefix, X-Webdav-Source" {
		t.Errorf("Vary: %q", got)
	}
}

func TestDispatchVectors(t *testing.T) {
	v := spec(t)
	s, _ := open(t, func(c *Config, _ *limits) { c.Logs = tree(v.Dispatch.Files) })
	for _, d := range v.Dispatch.Cases {
		if d.Method == http.MethodHead {
			d.Status = http.StatusOK // recommended
		}
		t.Run(d.Name, func(t *testing.T) { play(t, to(t, s), d) })
	}
	t.Run("no log collection", func(t *testing.T) {
		s, _ := open(t, nil)
		play(t, to(t, s), v.Dispatch.NoCollection)
	})
}

// nowhere is a container without an address.
type nowhere struct {
	Target
	err error
}

func (n nowhere) Dial(context.Context, int) (net.Conn, error) { return nil, n.err }

func TestNoContainerAddress(t *testing.T) {
	v := spec(t)
	targets := []Target{nowhere{err: fmt.Errorf("%w: E", ErrNoAddress)}, nowhere{err: ErrNoAddress}}
	for i, d := range v.Dispatch.NoAddress {
		d.Method, d.Path = "GET", "/"
		d.Headers = map[string]string{headerUUID: "{uuid}", headerAuth: "{auth}", headerPort: "80"}
		t.Run(d.Cause, func(t *testing.T) {
			s, _ := open(t, func(c *Config, _ *limits) { c.Target = targets[i] })
			play(t, to(t, s), d)
		})
	}
	t.Run("not started", func(t *testing.T) {
		s, _ := open(t, func(c *Config, _ *limits) { c.Target = nil })
		r := to(t, s).send(header("GET", "/", headerPort+": 80") + "\r\n")
		if r.StatusCode != 503 || r.body != "container has no IP address: the container has not been started\n" {
			t.Errorf("%s %q", r.Status, r.body)
		}
	})
}

// fakeSSH says what it has been told.
type fakeSSH struct{ served atomic.Int32 }

func (f *fakeSSH) ServeConn(_ context.Context, c net.Conn, o SSHOptions) {
	f.served.Add(1)
	defer c.Close()
	fmt.Fprintf(c, "SSH-2.0-fake %q %q\n", o.DetachKeys, o.LoginUser)
	io.Copy(c, c)
}

// The controller overwrites the one header it means and lets the client's pass:
// neither the shell nor the log may be had through a published port.
func TestPortsGiveNothingElse(t *testing.T) {
	v := spec(t)
	var asked atomic.Int32
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set(headerResponse, "forged")
		fmt.Fprint(w, "service")
	}))
	defer service.Close()
	u, _ := url.Parse(service.URL)
	ssh := &fakeSSH{}
	s, _ := open(t, func(c *Config, _ *limits) { c.Logs = tree(v.Dispatch.Files); c.SSH = ssh })
	want := map[string]struct {
		status int
		asked  bool
	}{
		"log source smuggled into a port request":                  {400, false},
		"ssh upgrade smuggled into a port request":                 {200, true},
		"ssh upgrade together with log source":                     {405, false},
		"port is not a number":                                     {400, false},
		"port out of range":                                        {400, false},
		"container service sends X-Arvados-Authorization-Response": {200, true},
	}
	for _, d := range v.Dispatch.MustDiffer {
		t.Run(d.Name, func(t *testing.T) {
			w, ok := want[d.Name]
			if !ok {
				t.Fatal("a new vector")
			}
			if d.Headers[headerPort] == "8888" {
				d.Headers[headerPort] = u.Port()
			}
			d.Status, d.AuthResponse = w.status, true
			asked.Store(0)
			r := play(t, to(t, s), d)
			if strings.Contains(r.body, "hello world") {
				t.Error("the log was shown")
			}
			if (asked.Load() > 0) != w.asked {
				t.Errorf("the service was asked %d times", asked.Load())
			}
		})
	}
	if ssh.served.Load() != 0 {
		t.Error("a client of a port got a shell")
	}
}

func TestAmbiguousRequests(t *testing.T) {
	v := spec(t)
	ssh := &fakeSSH{}
	s, _ := open(t, func(c *Config, _ *limits) { c.Logs = tree(v.Dispatch.Files); c.SSH = ssh })
	auth := []string{headerUUID + ": {uuid}", headerAuth + ": {auth}"}
	for name, c := range map[string]struct {
		method  string
		path    string
		headers []string
		status  int
	}{
		"two uuids":                 {"GET", "/", append(auth, headerUUID+": {uuid}"), 400},
		"two authorizations":        {"GET", "/", append(auth, headerAuth+": {auth}"), 400},
		"two ports":                 {"GET", "/", append(auth, headerPort+": 1", headerPort+": 2"), 400},
		"two ports, one empty":      {"GET", "/", append(auth, headerPort+":", headerPort+": 2"), 400},
		"two sources":               {"GET", "/stderr.txt", append(auth, headerSource+": /log", headerSource+": /log"), 400},
		"two prefixes":              {"GET", "/stderr.txt", append(auth, headerSource+": /log", headerPrefix+":", headerPrefix+": /x"), 400},
		"list of ports":             {"GET", "/", append(auth, headerPort+": 80, 81"), 400},
		"signed port":               {"GET", "/", append(auth, headerPort+": +80"), 400},
		"port 0":                    {"GET", "/", append(auth, headerPort+": 0"), 400},
		"port with other digits":    {"GET", "/", append(auth, headerPort+": ٨٠"), 400},
		"blank port, log":           {"GET", "/stderr.txt", append(auth, headerPort+":  ", headerSource+": /log"), 200},
		"ssh elsewhere":             {"POST", "/ssh/", append(auth, "Upgrade: ssh", "Content-Length: 0"), 404},
		"ssh with another source":   {"POST", "/ssh", append(auth, "Upgrade: ssh", "Content-Length: 0", headerSource+": /"), 404},
		"ssh for somebody else":     {"POST", "/ssh", append(auth, "Upgrade: ssh", "Connection: Upgrade", "X-Forwarded-For: 192.0.2.1", "Content-Length: 0"), 400},
		"list of upgrades":          {"POST", "/ssh", append(auth, "Upgrade: ssh", "Upgrade: websocket", "Content-Length: 0"), 404},
		"options of the server":     {"OPTIONS", "*", nil, 502},
		"connect":                   {"CONNECT", "127.0.0.1:22", append(auth, headerPort+": 22"), 405},
		"authorization as a suffix": {"GET", "/", []string{auth[0], headerAuth + ": x{auth}"}, 401},
		"empty authorization":       {"GET", "/", []string{auth[0], headerAuth + ":"}, 401},
		"another's uuid":            {"GET", "/", []string{headerUUID + ": zzzzz-dz642-000000000000000", auth[1]}, 502},
	} {
		t.Run(name, func(t *testing.T) {
			r := to(t, s).send(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", c.method, c.path, strings.Join(c.headers, "\r\n")))
			if r.StatusCode != c.status {
				t.Errorf("%s %q", r.Status, r.body)
			}
			checkVary(t, r)
		})
	}
	if ssh.served.Load() != 0 {
		t.Error("somebody got a shell")
	}
}

// What proves something to one gateway proves nothing to another: not to the
// next container's, nor to the same container's next process.
func TestReplayedAuthorization(t *testing.T) {
	first, _ := open(t, nil)
	second, _ := open(t, nil)
	if first.request == second.request {
		t.Fatal("two processes have the same certificate")
	}
	for name, value := range map[string]string{
		"another process": first.request,
		"response":        second.response,
		"secret":          second.config.Secret,
	} {
		r := to(t, second).send(strings.Replace(header("GET", "/"), "{auth}", value, 1) + "\r\n")
		if r.StatusCode != 401 || r.Header.Get(headerResponse) != "" {
			t.Errorf("%s: %s", name, r.Status)
		}
	}
}

// Old controllers put the UUID into the form. The rest of the form still
// reaches whom it is for.
func TestUUIDInForm(t *testing.T) {
	ssh := &fakeSSH{}
	s, _ := open(t, func(c *Config, _ *limits) { c.SSH = ssh })
	request := func(uuid string) string {
		form := "login_username=bob&uuid=" + uuid
		return fmt.Sprintf("POST /ssh?uuid=nobody HTTP/1.1\r\nHost: x\r\nUpgrade: ssh\r\n%s: {auth}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", headerAuth, len(form), form)
	}
	r := to(t, s).send(request("zzzzz-dz642-000000000000000"))
	if r.StatusCode != 502 {
		t.Errorf("another's uuid: %s %q", r.Status, r.body)
	}
	c := to(t, s)
	l := c.connect()
	go io.WriteString(l, l.fill("", request(s.config.UUID)))
	upgraded, err := http.ReadResponse(l.r, nil)
	if err != nil || upgraded.StatusCode != 101 {
		t.Fatalf("%v %v", upgraded, err)
	}
	if hello, err := l.r.ReadString('\n'); hello != "SSH-2.0-fake \"\" \"bob\"\n" {
		t.Errorf("%q %v", hello, err)
	}
}

// A stranger's request is refused before its body is read.
func TestRefusedBeforeTheBody(t *testing.T) {
	s, _ := open(t, nil)
	r := to(t, s).send(strings.Replace(header("POST", "/ssh", "Content-Length: 1000000000"), "{auth}", "wrong", 1) + "\r\n")
	if r.StatusCode != 401 {
		t.Errorf("%s", r.Status)
	}
}

func TestDeferred(t *testing.T) {
	var d Deferred
	if _, err := d.Dial(t.Context(), 80); !errors.Is(err, ErrNoAddress) {
		t.Errorf("%v", err)
	}
	var e *ExecError
	if _, err := d.Exec(t.Context(), Command{}); !errors.As(err, &e) || e.Code != 1 {
		t.Errorf("%v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d.Set(toHost{})
	c, err := d.Dial(t.Context(), l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	d.Set(nil)
	if _, err := d.Dial(t.Context(), 80); !errors.Is(err, ErrNoAddress) {
		t.Errorf("%v", err)
	}
}
