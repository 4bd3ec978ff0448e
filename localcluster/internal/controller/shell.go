package controller

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Shell is what the user of a shell asks for.
type Shell struct {
	DetachKeys, LoginUsername string
	NoForward                 bool
}

// errorText is how much of a gateway's own words is shown to the user.
const errorText = 1000

// ServeShell connects a client's upgraded connection to the SSH server in the
// gateway of a container, and returns when it ends. started is called once the
// gateway has agreed; before it has succeeded nothing is carried. An error was
// met before anything was answered.
func (c *Controller) ServeShell(ctx context.Context, w http.ResponseWriter, uuid, address string, s Shell, started func(context.Context) error) error {
	end, err := c.begin(c.long)
	if err != nil {
		return err
	}
	defer end()
	g, err := c.connect(ctx, uuid, address)
	var refused *Error
	if err != nil && !errors.As(err, &refused) {
		return &Error{http.StatusBadGateway, err.Error()}
	}
	if err != nil {
		return err
	}
	defer g.Close()
	inside, err := g.upgrade(ctx, uuid, s)
	if err != nil {
		return &Error{http.StatusBadGateway, err.Error()}
	}
	if err := started(ctx); err != nil {
		return err
	}
	peer, err := switchProtocols(w, "ssh")
	if err != nil {
		return err
	}
	relay(c.ctx, peer, inside)
	return nil
}

// upgrade asks the gateway for SSH. The request is, byte for byte, the one that
// gateways know (testdata/spec/gateway.json, ssh_upgrade).
func (g *conn) upgrade(ctx context.Context, uuid string, s Shell) (net.Conn, error) {
	form := url.Values{
		"detach_keys": {s.DetachKeys}, "login_username": {s.LoginUsername}, "no_forward": {strconv.FormatBool(s.NoForward)}, "uuid": {uuid},
	}.Encode()
	defer context.AfterFunc(ctx, func() { _ = g.Close() })()
	_ = g.SetDeadline(time.Now().Add(handshakeTimeout))
	if _, err := fmt.Fprintf(g, "POST http://%s/ssh HTTP/1.1\r\nHost: %s\r\nUpgrade: ssh\r\n%s: %s\r\n%s: %s\r\n"+
		"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
		g.host, g.host, headerUUID, uuid, headerRequest, g.request, len(form), form); err != nil {
		return nil, fmt.Errorf("ask the container gateway for a shell: %w", err)
	}
	in := bufio.NewReader(g)
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodPost})
	if err != nil {
		return nil, fmt.Errorf("ask the container gateway for a shell: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, errorText)) // what there is of it
		return nil, fmt.Errorf("unexpected status %s %q", resp.Status, text)
	}
	if !strings.EqualFold(resp.Header.Get("Upgrade"), "ssh") || !strings.EqualFold(resp.Header.Get("Connection"), "upgrade") {
		return nil, fmt.Errorf("container gateway upgraded the connection to %q, not to SSH", resp.Header.Get("Upgrade"))
	}
	if err := g.proven(resp.Header); err != nil {
		return nil, err
	}
	return &bufferedConn{Conn: g.Conn, r: in}, g.SetDeadline(time.Time{})
}
