package arvados

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"time"
)

// ClockOffset is how far this machine's clock is ahead of that of the cluster at
// host ("HOST" or "HOST:PORT"), to a second (RFC 9110 section 6.6.1, Date). No token
// is sent, and the server's certificate is not checked, because a clock that is
// wrong would find it not yet or no more valid: it may be forged, and is
// good for checking a node only.
func ClockOffset(ctx context.Context, host string) (time.Duration, error) {
	transport := &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+host+"/", nil)
	if err != nil {
		return 0, fmt.Errorf("ask %q for the time: %w", host, err)
	}
	before := time.Now()
	// Not a client, which would follow redirects to other servers.
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, fmt.Errorf("ask %s for the time: %w", host, err)
	}
	after := time.Now()
	_ = resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, fmt.Errorf("ask %s for the time: Date: %w", host, err)
	}
	// The header has whole seconds: on the average half a second has passed.
	middle := before.Add(after.Sub(before) / 2)
	return middle.Sub(date.Add(time.Second / 2)), nil
}
