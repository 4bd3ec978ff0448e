package gateway

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// FuzzRequest sends whatever bytes as requests, in clear text: what TLS carries.
// Nobody who does not know the secret gets anything but a refusal.
func FuzzRequest(f *testing.F) {
	v := spec(f)
	const auth = "AUTHORIZATION"
	for _, d := range append(v.Dispatch.Cases, v.Dispatch.MustDiffer...) {
		var b strings.Builder
		b.WriteString(d.Method + " " + d.Path + " HTTP/1.1\r\nHost: x\r\n")
		for name, value := range d.Headers {
			b.WriteString(name + ": " + strings.NewReplacer("{uuid}", v.Names.UUID, "{auth}", auth).Replace(value) + "\r\n")
		}
		f.Add([]byte(b.String()+"\r\n"), true)
		f.Add([]byte(b.String()+"\r\n"), false)
	}
	f.Add([]byte(strings.NewReplacer("{auth}", auth).Replace(v.SSHUpgrade.Request)), true)
	f.Add([]byte(strings.NewReplacer("{auth}", auth).Replace(v.Forward.From)), true)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 32\r\n\r\nuuid="+v.Names.UUID), false)

	// Strangers have a server of their own: what one does for who knows the secret
	// can go on after its request has been given up here.
	ssh, dialled := &countingSSH{}, &nowhereCounted{}
	open := func(target Target, ssh SSHServer) (*Server, *handedIn) {
		c := Config{UUID: v.Names.UUID, Secret: v.Names.Secret, Address: "127.0.0.1:0", Target: target, SSH: ssh, Logs: tree(v.Dispatch.Files)}
		s, err := start(f.Context(), c, defaultLimits)
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { s.Close(context.Background()) })
		clear := &http.Server{Handler: s, ReadHeaderTimeout: time.Second, MaxHeaderBytes: s.limits.headerBytes, DisableGeneralOptionsHandler: true, ErrorLog: s.http.ErrorLog}
		l := newHandedIn()
		served := make(chan error)
		go func() { served <- clear.Serve(l) }()
		f.Cleanup(func() { clear.Close(); <-served })
		return s, l
	}
	strangers, toStrangers := open(dialled, ssh)
	friends, toFriends := open(&nowhereCounted{}, &countingSSH{})

	f.Fuzz(func(t *testing.T, data []byte, knows bool) {
		s, l := strangers, toStrangers
		if knows {
			s, l = friends, toFriends
			data = bytes.ReplaceAll(data, []byte(auth), []byte(s.request))
		}
		client, server := net.Pipe()
		l.hand(server)
		var writing sync.WaitGroup
		writing.Go(func() {
			client.SetWriteDeadline(time.Now().Add(patience))
			client.Write(data)
			client.Write([]byte("\r\n\r\n"))
		})
		client.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) // it may wait for more
		answer, _ := io.ReadAll(client)
		client.Close()
		writing.Wait()
		if bytes.Contains(answer, []byte(s.config.Secret)) {
			t.Errorf("the secret is told: %q", answer)
		}
		if knows {
			return
		}
		if bytes.Contains(answer, []byte(s.response)) || ssh.n.Load() > 0 || dialled.n.Load() > 0 {
			t.Errorf("a stranger gets %q", answer)
		}
		for r := bufio.NewReader(bytes.NewReader(answer)); ; {
			reply, err := http.ReadResponse(r, nil)
			if err != nil {
				break
			}
			if reply.StatusCode < 400 && reply.StatusCode != 100 {
				t.Errorf("a stranger gets %s", reply.Status)
			}
			io.Copy(io.Discard, reply.Body)
		}
	})
}

type countingSSH struct{ n atomic.Int32 }

func (c *countingSSH) ServeConn(_ context.Context, conn net.Conn, _ SSHOptions) {
	c.n.Add(1)
	conn.Close()
}

type nowhereCounted struct {
	Target
	n atomic.Int32
}

func (n *nowhereCounted) Dial(context.Context, int) (net.Conn, error) {
	n.n.Add(1)
	return nil, ErrNoAddress
}

func FuzzPort(f *testing.F) {
	for _, s := range []string{"80", "0", "65535", "65536", "+1", "-1", "1e3", "0x50", "080", "８０", " 80", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		port, err := parsePort(text)
		if err != nil {
			return
		}
		if port < 1 || port > 65535 || strings.Trim(text, "0123456789") != "" {
			t.Errorf("%q is port %d", text, port)
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, l := range spec(f).Listen {
		f.Add(l.Address)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := parseAddress(text)
		if err == nil && (len(b.binds) == 0 || b.host == "") {
			t.Errorf("%q: %+v", text, b)
		}
	})
}
