package keepstore

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
)

// statusError is an error with the HTTP status and the one-line text that a
// client of keepstore expects (spec keep.md section 6).
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

var (
	errBadRequest       = &statusError{http.StatusBadRequest, "Bad Request"}
	errInvalidLocator   = &statusError{http.StatusBadRequest, "invalid locator"}
	errInvalidSignature = &statusError{http.StatusBadRequest, "invalid signature"}
	errNoRemote         = &statusError{http.StatusBadRequest, "remote cluster not configured"}
	errNoToken          = &statusError{http.StatusUnauthorized, "no token provided in Authorization header"}
	errExpired          = &statusError{http.StatusUnauthorized, "expired signature"}
	errUnauthorized     = &statusError{http.StatusUnauthorized, "Unauthorized"}
	errForbidden        = &statusError{http.StatusForbidden, "Forbidden"}
	errNotFound         = &statusError{http.StatusNotFound, fs.ErrNotExist.Error()}
	errMethodNotAllowed = &statusError{http.StatusMethodNotAllowed, "method not allowed"}
	errTooLarge         = &statusError{http.StatusRequestEntityTooLarge, "block exceeds 67108864 bytes"}
	errCollision        = &statusError{http.StatusInternalServerError, "hash collision"}
	errChecksum         = &statusError{http.StatusBadGateway, "checksum mismatch in stored data"}
	errUnavailable      = &statusError{http.StatusServiceUnavailable, "volume unavailable"}
	errFull             = &statusError{http.StatusInsufficientStorage, "insufficient storage"}
	errTimeout          = &statusError{http.StatusServiceUnavailable, "request timed out in keepstore"}
	errBusy             = &statusError{http.StatusServiceUnavailable, "too many requests"} // sent without the text
)

// statusOf turns any error into the one to be sent. A request that took too
// long is answered 503, which clients repeat; the reference's 499 is not
// repeated by all of them.
func statusOf(err error) *statusError {
	var se *statusError
	switch {
	case errors.As(err, &se):
		return se
	case errors.Is(err, fs.ErrNotExist):
		return errNotFound
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return errTimeout
	}
	return &statusError{http.StatusInternalServerError, err.Error()}
}
