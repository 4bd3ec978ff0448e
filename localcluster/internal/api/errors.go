package api

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"

	"github.com/ncruces/go-sqlite3"

	"crunch-oci/localcluster/internal/store"
)

// apiError is a refusal that the client is told about.
type apiError struct {
	status int
	texts  []string
	plain  bool // made by the front end itself: no request id, no wrapping
}

func (e *apiError) Error() string { return strings.Join(e.texts, "; ") }

// backError is an error of the back end (shown through the front end on its
// resources).
func backError(status int, format string, a ...any) *apiError {
	return &apiError{status: status, texts: []string{fmt.Sprintf(format, a...)}}
}

// plainError is an error of the front end.
func plainError(status int, format string, a ...any) *apiError {
	return &apiError{status: status, texts: []string{fmt.Sprintf(format, a...)}, plain: true}
}

// invalid is a failed validation.
func invalid(format string, a ...any) *apiError {
	return backError(http.StatusUnprocessableEntity, format, a...)
}

// raised is a 422 in the form the back end gives to errors raised in its code.
func raised(class, format string, a ...any) *apiError {
	return backError(http.StatusUnprocessableEntity, "#<%s: %s>", class, fmt.Sprintf(format, a...))
}

// denied is a 403. An empty text is the one of the real server.
func denied(text string) *apiError {
	if text == "" {
		text = "ArvadosModel::PermissionDeniedError"
	}
	return backError(http.StatusForbidden, "#<ArvadosModel::PermissionDeniedError: %s>", text)
}

func errPathNotFound() *apiError { return backError(http.StatusNotFound, "Path not found") }

var errNotLoggedIn = backError(http.StatusUnauthorized, "Not logged in")

// classify finds the API error for whatever went wrong.
func (s *Server) classify(c *call, err error) (*apiError, int) {
	var e *apiError
	if errors.As(err, &e) {
		return e, e.status
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		e = plainError(http.StatusRequestEntityTooLarge, "request body is larger than %d bytes", tooLarge.Limit)
	case errors.Is(err, store.ErrNotFound):
		e = errPathNotFound()
	case errors.Is(err, store.ErrClosed):
		e = plainError(http.StatusServiceUnavailable, "the cluster is shutting down")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, sqlite3.INTERRUPT):
		e = plainError(http.StatusServiceUnavailable, "request took longer than %v or was given up", requestTimeout)
	case errors.Is(err, sqlite3.FULL), errors.Is(err, sqlite3.IOERR):
		s.log.Error("the cluster's database cannot be read or written; is its disk full?", "path", c.r.URL.Path, "request_id", c.id, "error", err)
		e = backError(http.StatusInternalServerError, "the cluster's database cannot be read or written (disk full?): %v", err)
	default:
		s.log.Error("request failed", "method", c.method, "path", c.r.URL.Path, "request_id", c.id, "error", err)
		e = backError(http.StatusInternalServerError, "internal error: %v", err)
	}
	return e, e.status
}

// body is the JSON of an error.
func (e *apiError) body(c *call) map[string]any {
	if e.plain {
		return map[string]any{"errors": e.texts}
	}
	texts := make([]string, len(e.texts))
	for i, t := range e.texts {
		texts[i] = t + " (" + c.id + ")"
	}
	if c.res == nil || !c.res.front {
		return map[string]any{"errors": texts, "error_token": fmt.Sprintf("%d+%08x", c.now.Unix(), rand.Uint32())}
	}
	reason := http.StatusText(e.status)
	if e.status == http.StatusUnprocessableEntity {
		reason = "Unprocessable Content"
	}
	return map[string]any{"errors": []string{fmt.Sprintf("//railsapi.internal%s: %d %s: %s", c.r.URL.Path, e.status, reason, strings.Join(texts, "; "))}}
}
