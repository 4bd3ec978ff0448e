package keepstore

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"crunch-oci/keep/keepstore/s3test"
)

// A server that is killed in the middle of a transfer leaves no half block, and
// the next attempt succeeds when it is there again.
func TestS3Killed(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	c := g.store(nil)
	data := randomBytes(20, 4*s3Part)
	hash := md5hex(data)
	signed := c.srv.sign(fmt.Sprintf("%s+%d", hash, len(data)), userToken)
	killAt := func(match func(*http.Request) bool) {
		g.Fail(func(w http.ResponseWriter, r *http.Request) bool {
			if match(r) {
				_, _ = io.CopyN(io.Discard, r.Body, s3Part/2)
				g.Kill()
			}
			return false
		})
	}
	get := func() reply { return c.do("GET", "/"+signed, userToken, nil) }
	killAt(func(r *http.Request) bool { return r.URL.Query().Get("partNumber") == "3" })
	if r := c.do("PUT", "/"+hash, userToken, data); r.status != 503 {
		t.Errorf("PUT: %d %s", r.status, r.body)
	}
	if r := get(); r.status < 500 { // not: no such block
		t.Errorf("GET while it is away: %d", r.status)
	}
	g.Fail(nil)
	g.Restart()
	if r := get(); r.status != 404 {
		t.Errorf("GET of what was not written: %d", r.status)
	}
	c.want(c.do("GET", "/index", rootToken, nil), 200, "\n")
	c.put(data)
	killAt(func(r *http.Request) bool { return r.Method == "GET" && r.Header.Get("Range") != "" })
	if r := get(); r.status < 500 {
		t.Errorf("GET: %d, %d bytes", r.status, len(r.body))
	}
	g.Fail(nil)
	g.Restart()
	c.want(get(), 200, string(data))
}

// A server that says to have an object before it has been sent all of it is not
// believed.
func TestS3AnswersFirst(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	c := g.store(nil)
	data := randomBytes(22, s3Part) // more than a connection buffers, in one request
	sum := md5hex(data)
	end := make(chan struct{})
	defer close(end)
	g.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != "PUT" || r.ContentLength != s3Part {
			return false
		}
		w.Header().Set("ETag", `"`+sum+`"`)
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-end:
		case <-r.Context().Done():
		}
		return true
	})
	if r := c.do("PUT", "/"+sum, userToken, data); r.status != 503 {
		t.Errorf("answered first: %d %s", r.status, r.body)
	}
	g.Fail(nil)
	if r := c.do("PUT", "/"+sum, userToken, data); r.status != 200 {
		t.Errorf("well again: %d %s", r.status, r.body)
	}
}

// A server that does not answer is given up after ReadTimeout; one that answers
// a part with another's ETag is not believed.
func TestS3Answers(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	c := g.store(func(_ *Config, s *S3Config) { s.ReadTimeout = 2 * time.Second })
	data := randomBytes(21, 2*s3Part)
	hash := md5hex(data)
	put := func() reply { return c.do("PUT", "/"+hash, userToken, data) }
	part := func(r *http.Request) bool { return r.URL.Query().Get("partNumber") == "2" }
	g.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		if part(r) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}
		return part(r)
	})
	if r := put(); r.status != 503 {
		t.Errorf("no answer: %d %s", r.status, r.body)
	}
	c = g.store(nil)
	g.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		if part(r) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("ETag", `"00000000000000000000000000000000"`)
		}
		return part(r)
	})
	if r := put(); r.status != 503 {
		t.Errorf("another ETag: %d %s", r.status, r.body)
	}
	g.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		// S3 may begin to answer 200 and then find that it cannot.
		if r.Method == "POST" && r.URL.Query().Has("uploadId") {
			s3test.Error(w, 200, "InternalError")
			return true
		}
		return false
	})
	if r := put(); r.status != 503 {
		t.Errorf("an error with status 200: %d %s", r.status, r.body)
	}
	g.Fail(nil)
	c.want(c.do("GET", "/index", rootToken, nil), 200, "\n")
	if r := put(); r.status != 200 {
		t.Errorf("well again: %d %s", r.status, r.body)
	}
}
