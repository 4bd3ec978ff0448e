package keepstore

import (
	"io"
	"net/http"
	"time"
)

// bodySilence is how long a client may send nothing of a block: it holds a
// place that others wait for, and may have been switched off.
const bodySilence = time.Minute

// attended is a request's body that is given up when nothing comes for a while.
type attended struct {
	io.ReadCloser
	conn    *http.ResponseController
	silence time.Duration
	end     time.Time // of the whole request
	set     time.Time // when the connection's deadline was set last
}

// attend watches over the body of r, whose context has a deadline.
func (s *Server) attend(w http.ResponseWriter, r *http.Request) {
	end, _ := r.Context().Deadline()
	r.Body = &attended{ReadCloser: r.Body, conn: http.NewResponseController(w), silence: s.cfg.bodySilence, end: end}
}

func (a *attended) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(a.set) > a.silence/16 {
		a.set = now
		deadline := now.Add(a.silence)
		if deadline.After(a.end) {
			deadline = a.end
		}
		_ = a.conn.SetReadDeadline(deadline)
	}
	n, err := a.ReadCloser.Read(p)
	if err != nil {
		// From now on the server watches whether the client is still there, which
		// may take as long as the request.
		_ = a.conn.SetReadDeadline(a.end)
	}
	return n, err
}
