// Package cloud asks the cloud about the instance that this machine is: whether
// it is a spot instance that will be taken away.
//
// The protocol is that of EC2's instance metadata service, version 2:
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
// and, for the notices, spot-instance-termination-notices.html there.
package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// DefaultMetadata is where an EC2 instance finds its metadata.
const DefaultMetadata = "http://169.254.169.254"

const (
	checkInterval = 5 * time.Second
	checkTimeout  = time.Minute
	// maxFailures in a row end the watch.
	maxFailures = 6
	tokenTTL    = 6 * time.Hour
	// renewBefore is how early a token is renewed.
	renewBefore = time.Minute
	// maxAnswer bounds an answer, in bytes.
	maxAnswer = 64 << 10
)

// ErrGivenUp ends a watch that never learns anything.
var ErrGivenUp = errors.New("too many consecutive errors")

// Notice is an interruption that the cloud has announced.
type Notice struct {
	Action string    `json:"action"` // "terminate", "stop" or "hibernate"
	Time   time.Time `json:"time"`
}

// SpotWatch looks for interruption notices. Its methods are for one goroutine.
type SpotWatch struct {
	base     string
	logf     func(format string, args ...any)
	client   *http.Client
	after    func(time.Duration) <-chan time.Time
	now      func() time.Time
	token    string
	expires  time.Time
	failures int
}

// NewSpotWatch makes a watch and says so; base is DefaultMetadata or where else
// the metadata service is. logf gets what users should know.
func NewSpotWatch(base string, logf func(format string, args ...any)) *SpotWatch {
	base = strings.TrimRight(base, "/")
	logf("Checking for spot instance interruptions every %s using instance metadata at %s", checkInterval, base)
	return &SpotWatch{
		base: base, logf: logf, after: time.After, now: time.Now,
		// The service is on the machine itself: no proxy can reach it.
		client: &http.Client{Transport: &http.Transport{MaxIdleConns: 1, IdleConnTimeout: 3 * checkInterval}},
	}
}

// Next waits for the next time that there is a notice, which may be the same as
// before. The error is ErrGivenUp or ctx's.
func (w *SpotWatch) Next(ctx context.Context) (Notice, error) {
	for {
		select {
		case <-w.after(checkInterval):
		case <-ctx.Done():
			w.client.CloseIdleConnections()
			return Notice{}, ctx.Err()
		}
		notice, err := w.check(ctx)
		switch {
		case ctx.Err() != nil:
			continue
		case err != nil:
			if w.failures++; w.failures >= maxFailures {
				w.logf("Spot instance interruption check was inconclusive: %v -- now giving up after too many consecutive errors", err)
				w.client.CloseIdleConnections()
				return Notice{}, ErrGivenUp
			}
			w.logf("Spot instance interruption check was inconclusive: %v -- will retry in %s", err, checkInterval)
		default:
			w.failures = 0
			if notice.Action != "" {
				return notice, nil
			}
		}
	}
}

// check asks once. No notice is one without action.
func (w *SpotWatch) check(ctx context.Context) (n Notice, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if w.token == "" || w.expires.Sub(w.now()) < renewBefore {
		if err := w.renew(ctx); err != nil {
			return n, err
		}
	}
	status, body, err := w.do(ctx, http.MethodGet, "/latest/meta-data/spot/instance-action", "X-aws-ec2-metadata-token", w.token)
	switch {
	case err != nil:
		return n, err
	case status == http.StatusNotFound:
		return n, nil
	case status == http.StatusUnauthorized:
		w.token = ""
		return n, statusError(status)
	case status != http.StatusOK:
		return n, statusError(status)
	}
	if err := json.Unmarshal(body, &n); err != nil {
		return Notice{}, err
	}
	return n, nil
}

func (w *SpotWatch) renew(ctx context.Context) error {
	asked := w.now()
	status, body, err := w.do(ctx, http.MethodPut, "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", fmt.Sprint(int(tokenTTL.Seconds())))
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return statusError(status)
	}
	w.token, w.expires = strings.TrimSpace(string(body)), asked.Add(tokenTTL)
	return nil
}

func (w *SpotWatch) do(ctx context.Context, method, path, header, value string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, w.base+path, nil)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set(header, value)
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, body, err
}

func statusError(status int) error {
	return fmt.Errorf("%d %s", status, http.StatusText(status))
}
