package arvados

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The retry policy (spec: arvados-api section 5). It holds for all methods:
// repeating an update that took effect changes nothing, and creating a
// collection twice leaves one more collection.

// maxRetries bounds the attempts after the first.
const maxRetries = 32

// retryableStatus reports whether an answer may be different next time.
func retryableStatus(status int) bool {
	return status == http.StatusTooManyRequests || status >= 500 && status != http.StatusNotImplemented
}

// retryableTransport reports whether an attempt without an answer may have one
// next time.
func retryableTransport(err error) bool {
	// Too few descriptors stay too few: nobody gives any back meanwhile.
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return false
	}
	return !isCertificateError(err) && !errors.Is(err, errRedirect) && !errors.Is(err, errTooLarge)
}

// waitCap is the longest wait between attempts.
func waitCap(budget time.Duration) time.Duration { return budget / 10 }

// wait returns the time before retry n (0, 1, ...), where random is in [0, 1).
// A server's Retry-After, given with a 429 or 503, comes first.
func wait(n int, e *Error, budget time.Duration, now time.Time, random float64) time.Duration {
	longest := waitCap(budget)
	if e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable {
		if d, ok := parseRetryAfter(e.retryAfter, now); ok {
			return min(max(d, time.Second), longest)
		}
	}
	seconds := 1 + random*(math.Pow(2, float64(n))-1)
	if seconds >= longest.Seconds() {
		return longest
	}
	return time.Duration(seconds * float64(time.Second))
}

// parseRetryAfter understands whole seconds and the date forms of RFC 9110
// section 5.6.7. ok is false for what is absent, unparsable or not in the
// future.
func parseRetryAfter(value string, now time.Time) (d time.Duration, ok bool) {
	value = strings.TrimSpace(value)
	if n, err := strconv.ParseInt(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		// Longer than any budget is as good as infinite, and does not overflow.
		n = min(n, int64((24*time.Hour)/time.Second))
		return time.Duration(n) * time.Second, n > 0
	}
	if t, err := http.ParseTime(value); err == nil {
		d = t.Sub(now)
		return d, d > 0
	}
	return 0, false
}
