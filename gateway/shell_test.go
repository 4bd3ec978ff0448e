package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// ask sends an upgrade request and reads the reply as bytes up to its empty
// line.
func ask(t *testing.T, l *line, request string) string {
	t.Helper()
	go io.WriteString(l, request)
	var got strings.Builder
	for !strings.HasSuffix(got.String(), "\r\n\r\n") {
		text, err := l.r.ReadString('\n')
		got.WriteString(text)
		if err != nil {
			t.Fatalf("%q: %v", &got, err)
		}
	}
	return got.String()
}

func TestSSHUpgradeBytes(t *testing.T) { everyWay(t, testSSHUpgradeBytes) }

func testSSHUpgradeBytes(t *testing.T, open opener) {
	v := spec(t)
	ssh := &fakeSSH{}
	s, book := open(t, func(c *Config, _ *limits) { c.SSH = ssh })
	c := to(t, s)

	// Every client begins with a probe that goes away at once.
	probe := c.connect()
	ask(t, probe, probe.fill(v.Names.UUID, v.SSHUpgrade.Request))
	probe.Close()
	quick := c.connect()
	io.WriteString(quick, quick.fill(v.Names.UUID, v.SSHUpgrade.Request))
	quick.Close()

	l := c.connect()
	// The client's first words may come right behind the request.
	got := ask(t, l, l.fill(v.Names.UUID, v.SSHUpgrade.Request)+"SSH-2.0-eager\r\n")
	if want := l.fill("", v.SSHUpgrade.Response); got != want {
		t.Errorf("reply\n%q, want\n%q", got, want)
	}
	for _, want := range []string{"SSH-2.0-fake \"ctrl-],ctrl-]\" \"bob\"\n", "SSH-2.0-eager\r\n"} {
		if got, err := l.r.ReadString('\n'); got != want {
			t.Errorf("%q, want %q: %v", got, want, err)
		}
	}
	if text := book.String(); strings.Count(text, "\n") != 1 {
		t.Errorf("a probe is worth a message:\n%s", text)
	}
}

func TestSSHForm(t *testing.T) {
	v := spec(t)
	s, _ := open(t, func(c *Config, _ *limits) { c.SSH = &fakeSSH{} })
	check := func(t *testing.T, request, keys, user string) {
		l := to(t, s).connect()
		ask(t, l, l.fill(v.Names.UUID, request))
		want := fmt.Sprintf("SSH-2.0-fake %q %q\n", keys, user)
		if got, err := l.r.ReadString('\n'); got != want {
			t.Errorf("%q, want %q: %v", got, want, err)
		}
	}
	form := func(form string, more ...string) string {
		more = append(more, "Upgrade: ssh", "Content-Type: application/x-www-form-urlencoded", fmt.Sprint("Content-Length: ", len(form)))
		return header("POST", "http://pipe/ssh", more...) + "\r\n" + form
	}
	for _, f := range v.SSHUpgrade.Forms {
		t.Run(f.Form, func(t *testing.T) { check(t, form(f.Form), f.DetachKeys, f.LoginUser) })
	}
	old := []string{headerDetach + ": ctrl-a", headerLogin + ": carol"}
	t.Run("old controller", func(t *testing.T) { check(t, form("", old...), "ctrl-a", "carol") })
	t.Run("form wins", func(t *testing.T) { check(t, form("login_username=&detach_keys=ctrl-b", old...), "ctrl-b", "root") })
	for name, body := range map[string]string{
		"bad form": "login_username=%zz",
		"too long": "login_username=" + strings.Repeat("x", int(defaultLimits.formBytes)),
	} {
		t.Run(name, func(t *testing.T) {
			if r := to(t, s).send(form(body)); r.StatusCode != 400 {
				t.Errorf("%s", r.Status)
			}
		})
	}
}

// stuckSSH serves until it is told to stop.
type stuckSSH struct{ begun chan net.Conn }

func (s *stuckSSH) ServeConn(ctx context.Context, c net.Conn, _ SSHOptions) {
	s.begun <- c
	<-ctx.Done()
	c.Close()
}

func TestShellsAreCounted(t *testing.T) {
	const most = 3
	ssh := &stuckSSH{make(chan net.Conn, 10*most)}
	s, _ := open(t, func(c *Config, l *limits) { c.SSH, l.shells = ssh, most })
	request := header("POST", "/ssh", "Upgrade: ssh", "Content-Length: 0") + "\r\n"
	for range most {
		l := to(t, s).connect()
		if got := ask(t, l, l.fill(s.config.UUID, request)); !strings.HasPrefix(got, "HTTP/1.1 101 ") {
			t.Fatal(got)
		}
		<-ssh.begun
	}
	r := to(t, s).send(request)
	if r.StatusCode != 503 || !strings.Contains(r.body, "too many shells") {
		t.Errorf("%s %q", r.Status, r.body)
	}
	// Closing ends those that go on for ever; Cleanup waits for them.
	if r := to(t, s).send(header("GET", "/") + "\r\n"); r.StatusCode != 404 {
		t.Errorf("others: %s", r.Status)
	}
}

func TestNoShell(t *testing.T) {
	s, _ := open(t, nil)
	if r := to(t, s).send(header("POST", "/ssh", "Upgrade: ssh", "Content-Length: 0") + "\r\n"); r.StatusCode != 503 {
		t.Errorf("%s", r.Status)
	}
}

// A server that must end does not wait for whoever does not.
func TestCloseIsBounded(t *testing.T) {
	ssh := &deafSSH{make(chan struct{}), make(chan struct{})}
	s, _ := open(t, func(c *Config, _ *limits) { c.SSH = ssh })
	l := to(t, s).connect()
	ask(t, l, l.fill(s.config.UUID, header("POST", "/ssh", "Upgrade: ssh", "Content-Length: 0")+"\r\n"))
	<-ssh.begun
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); err == nil {
		t.Error("Close did not say that a session has not ended")
	}
	if _, err := bufio.NewReader(l).ReadByte(); err == nil {
		t.Error("the connection is still open")
	}
	if _, err := net.DialTimeout("tcp", s.Address(), patience); err == nil {
		t.Error("the listener is still open")
	}
	close(ssh.end)
}

type deafSSH struct{ begun, end chan struct{} }

func (d *deafSSH) ServeConn(context.Context, net.Conn, SSHOptions) {
	close(d.begun)
	<-d.end
}

// Hijacking is what HTTP/1.1 on a real connection offers.
func TestNoUpgradeWithoutHijack(t *testing.T) {
	v := spec(t)
	s, _ := open(t, func(c *Config, _ *limits) { c.SSH = &fakeSSH{} })
	r, _ := http.NewRequest("POST", "/ssh", nil)
	r.Header.Set("Upgrade", "ssh")
	r.Header.Set(headerUUID, v.Names.UUID)
	r.Header.Set(headerAuth, s.request)
	w := &plainWriter{header: http.Header{}}
	s.ServeHTTP(w, r)
	if w.status != 500 || !strings.HasPrefix(w.body.String(), "connection upgrade failed: ") {
		t.Errorf("%d %q", w.status, &w.body)
	}
}

type plainWriter struct {
	header http.Header
	status int
	body   strings.Builder
}

func (w *plainWriter) Header() http.Header         { return w.header }
func (w *plainWriter) WriteHeader(status int)      { w.status = status }
func (w *plainWriter) Write(p []byte) (int, error) { return w.body.Write(p) }
