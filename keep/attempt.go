package keep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
)

// ServiceError is how an attempt at one Keep service failed.
type ServiceError struct {
	// URL is the service's base.
	URL string
	// Status is the HTTP status, 0 if there was no reply.
	Status int
	// Body is the beginning of an error reply.
	Body string
	// Err is what went wrong if it was not the status.
	Err error
}

// Error says which service answered what.
func (e *ServiceError) Error() string {
	switch {
	case e.Err != nil:
		return fmt.Sprintf("%s: %v", e.URL, e.Err)
	case e.Body == "":
		return fmt.Sprintf("%s: HTTP %d", e.URL, e.Status)
	}
	return fmt.Sprintf("%s: HTTP %d %q", e.URL, e.Status, e.Body)
}

// Unwrap returns Err.
func (e *ServiceError) Unwrap() error { return e.Err }

// errAnswerFirst is no success whatever the answer says: nobody can have looked
// at a block that was not sent.
var errAnswerFirst = errors.New("the service answered before it had received the block, and did not take the rest")

// Temporary tells whether another round may end better.
func (e *ServiceError) Temporary() bool {
	switch {
	case e.Err != nil:
		return true
	case e.Status == http.StatusRequestTimeout, e.Status == http.StatusTooManyRequests:
		return true
	case e.Status == 499:
		// keepstore says so when its own request time-out has passed.
		return true
	}
	return e.Status >= 500
}

// How much of an error reply is kept, and how much of a good one is expected.
const maxReply = 4096

// attempt is one request to one service.
type attempt struct {
	method  string
	service Service
	path    string
	header  http.Header
	body    content // nil: none
	round   round
}

// do sends the request. For a 200 it calls read with the reply, whose body
// reports progress to the watchdog; read's error is put into the result. All
// that could refer to the body sent has ended when do returns.
func (c *Client) do(ctx context.Context, a attempt, read func(*http.Response) error) *ServiceError {
	client, idle := c.proxy, proxyLimits.idle
	if a.round.disk {
		client, idle = c.disk, diskLimits.idle
	}
	if c.cfg.IdleTimeout > 0 {
		idle = c.cfg.IdleTimeout
	}
	ctx, dog := newWatchdog(ctx, idle)
	sent := sentBodies{content: a.body, dog: dog}
	defer func() {
		// The transport may go on reading a body after it has returned the
		// reply, until it hears that the request has ended.
		dog.stop()
		sent.open.Wait()
	}()
	fail := func(err error) *ServiceError {
		return &ServiceError{URL: a.service.URL, Err: c.cause(ctx, err)}
	}
	resp, reused, err := c.send(ctx, client, a, &sent)
	if err != nil && reused && ctx.Err() == nil && sent.err() == nil {
		// Most likely the server had closed the connection while it was in the
		// pool, which says nothing about the server. The transport itself
		// repeats only requests of which it has sent nothing yet.
		client.CloseIdleConnections()
		resp, _, err = c.send(ctx, client, a, &sent)
	}
	if sent.err() != nil {
		return &ServiceError{URL: a.service.URL, Err: sent.err()}
	}
	if err != nil {
		if ctx.Err() == nil {
			c.servicesMayHaveMoved()
		}
		return fail(err)
	}
	defer resp.Body.Close()
	resp.Body = progressReader{resp.Body, dog}
	dog.progress(1)
	if resp.StatusCode == http.StatusOK {
		// An answer that is read to its end makes the transport cut off what it
		// is still sending.
		var err error
		if sent.whole() {
			err = read(resp)
		} else {
			err = cmp.Or(sent.err(), errAnswerFirst)
		}
		if err != nil {
			e := fail(err)
			e.Status = resp.StatusCode
			return e
		}
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	return &ServiceError{
		URL:    a.service.URL,
		Status: resp.StatusCode,
		Body:   c.redact(strings.TrimSpace(string(text))),
	}
}

// servicesMayHaveMoved has the list of services looked up again before the next
// round: one that cannot be reached may have come back at another address.
func (c *Client) servicesMayHaveMoved() {
	if cache, ok := c.cfg.Services.(interface{ Doubt() }); ok {
		cache.Doubt()
	}
}

// send sends the request once and tells whether it went over a connection that
// had been used before.
func (c *Client) send(ctx context.Context, client *http.Client, a attempt, sent *sentBodies) (resp *http.Response, reused bool, err error) {
	ctx = context.WithValue(ctx, roundKey{}, a.round.number)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused },
	})
	req, err := http.NewRequestWithContext(ctx, a.method, strings.TrimRight(a.service.URL, "/")+"/"+a.path, nil)
	if err != nil {
		return nil, false, err
	}
	if a.header != nil {
		req.Header = a.header.Clone()
	}
	req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	req.Header.Set("X-Request-Id", c.cfg.RequestID())
	if a.body != nil && a.body.Size() > 0 {
		req.ContentLength = a.body.Size()
		req.Body = sent.reader()
	}
	resp, err = client.Do(req)
	return resp, reused, err
}

// cause makes an error fit to be shown: what ended the context instead of the
// broken connection that followed, and without the URL, in which there may be a
// signature.
func (c *Client) cause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	if text := c.redact(err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}

var signatureHint = regexp.MustCompile(`\+(A|R[a-z0-9]{5}-)[0-9A-Za-z]*(@[0-9A-Za-z]*)?`)

// redact removes the token and anything like a signature from a foreign text.
func (c *Client) redact(s string) string {
	s = strings.ReplaceAll(s, c.cfg.Token, "[token]")
	if parts := strings.Split(c.cfg.Token, "/"); len(parts) > 2 && parts[2] != "" {
		s = strings.ReplaceAll(s, parts[2], "[token]")
	}
	return signatureHint.ReplaceAllString(s, "+$1...")
}

type progressReader struct {
	io.ReadCloser
	dog *watchdog
}

func (r progressReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.dog.progress(n)
	return n, err
}
