package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

const (
	// maxHeader bounds the header of the controller's reply, maxMessage what is
	// read of its body, both in bytes.
	maxHeader  = 256 << 10
	maxMessage = 1000
)

// connect asks the controller for a tunnel.
func (c *Config) connect(ctx context.Context) (tunnel net.Conn, internalURL string, err error) {
	if c.Host == "" {
		return nil, "", errors.New("ARVADOS_API_HOST is not set")
	}
	if strings.ContainsFunc(c.Host+c.Token+c.UUID, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, "", errors.New("ARVADOS_API_HOST or ARVADOS_API_TOKEN has blanks or control characters in it")
	}
	host, _, err := net.SplitHostPort(c.Host)
	address := c.Host
	if err != nil {
		host = strings.Trim(c.Host, "[]")
		address = net.JoinHostPort(host, "443")
	}
	dialer := net.Dialer{
		Timeout:         c.timing.setup,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 30 * time.Second, Count: 4},
	}
	tcp, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, "", err
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLS != nil {
		settings = c.TLS.Clone()
	}
	if settings.ServerName == "" {
		settings.ServerName = host
	}
	settings.NextProtos = nil // nothing but HTTP/1.1
	conn := tls.Client(tcp, settings)
	conn.SetDeadline(time.Now().Add(c.timing.setup))
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	tunnel, internalURL, err = c.ask(ctx, conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		tcp.Close()
		return nil, "", err
	}
	conn.SetDeadline(time.Time{})
	return tunnel, internalURL, nil
}

// ask does the exchange on a fresh connection.
func (c *Config) ask(ctx context.Context, conn *tls.Conn) (net.Conn, string, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, "", err
	}
	if _, err := io.WriteString(conn, c.request()); err != nil {
		return nil, "", err
	}
	limit := &headerLimit{Reader: conn, left: maxHeader}
	buffered := bufio.NewReader(limit)
	reply, err := readReply(buffered)
	if err != nil {
		return nil, "", fmt.Errorf("server did not provide a tunnel: %w", err)
	}
	if reply.StatusCode != http.StatusSwitchingProtocols {
		defer reply.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(reply.Body, maxMessage))
		return nil, "", fmt.Errorf("server did not provide a tunnel: %s: %s", printable(reply.Status), message(body))
	}
	if upgrade := reply.Header.Get("Upgrade"); !strings.EqualFold(upgrade, "tunnel") || !mentionsUpgrade(reply.Header["Connection"]) {
		return nil, "", fmt.Errorf("server did not provide a tunnel: bad response headers Connection=%q Upgrade=%q", reply.Header["Connection"], upgrade)
	}
	internalURL := reply.Header.Get("X-Arvados-Internal-Url")
	if strings.ContainsFunc(internalURL, unicode.IsControl) {
		return nil, "", errors.New("server did not provide a tunnel: bad X-Arvados-Internal-Url")
	}
	limit.left = -1
	return &tunnelConn{Conn: conn, r: buffered}, internalURL, nil
}

// request is what every controller and the proxies in front of it understand
// (gateway.md section 9).
func (c *Config) request() string {
	form := url.Values{"auth_secret": {c.Secret}}.Encode()
	return fmt.Sprintf("POST https://%s/arvados/v1/connect/%s/gateway_tunnel HTTP/1.1\r\n"+
		"Authorization: Bearer %s\r\n"+
		"Host: %s\r\n"+
		"Upgrade: tunnel\r\n"+
		"Connection: Upgrade\r\n"+
		"Content-Type: application/x-www-form-urlencoded\r\n"+
		"Content-Length: %d\r\n\r\n%s",
		c.Host, c.UUID, c.Token, c.Host, len(form), form)
}

// readReply skips interim replies.
func readReply(r *bufio.Reader) (*http.Response, error) {
	for range 5 {
		reply, err := http.ReadResponse(r, &http.Request{Method: http.MethodPost})
		if err != nil {
			return nil, err
		}
		if reply.StatusCode >= 200 || reply.StatusCode == http.StatusSwitchingProtocols {
			return reply, nil
		}
	}
	return nil, errors.New("too many interim replies")
}

// message is what an error reply says: the API's errors, or the quoted body.
func message(body []byte) string {
	var reply struct {
		Errors []string `json:"errors"`
	}
	if json.Unmarshal(body, &reply) == nil && len(reply.Errors) > 0 {
		return printable(strings.Join(reply.Errors, "; "))
	}
	return fmt.Sprintf("%q", body)
}

// printable keeps foreign text on its line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

func mentionsUpgrade(values []string) bool {
	for _, v := range values {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return true
			}
		}
	}
	return false
}

// headerLimit ends after so many bytes; -1 is without limit.
type headerLimit struct {
	io.Reader
	left int
}

func (l *headerLimit) Read(p []byte) (int, error) {
	if l.left < 0 {
		return l.Reader.Read(p)
	}
	if l.left == 0 {
		return 0, fmt.Errorf("reply header of more than %d bytes", maxHeader)
	}
	n, err := l.Reader.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// tunnelConn is the connection after the reply, with what has been read ahead
// of it.
type tunnelConn struct {
	net.Conn
	r io.Reader
}

func (c *tunnelConn) Read(p []byte) (int, error) { return c.r.Read(p) }
