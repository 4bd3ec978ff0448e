package keepstore

import (
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const emptyHash = "d41d8cd98f00b204e9800998ecf8427e"

// serveBlock answers GET and HEAD. The copy is read and verified to its end
// before the first byte leaves, and then sent from the page cache by the
// kernel: a damaged copy is an honest 502, or another mount's copy, and no
// request needs memory for a block.
func (s *Server) serveBlock(w http.ResponseWriter, r *http.Request, locator string) error {
	w.Header().Set("Vary", "X-Keep-Signature")
	ref, err := parseLocator(locator)
	if err != nil {
		return err
	}
	if ref.Remote && !ref.Signed {
		return s.serveRemote(w, r, ref)
	}
	if err := s.checkSignature(r, ref); err != nil {
		return err
	}
	if r.Method == http.MethodGet && ref.Size <= 0 && ref.Hash != emptyHash {
		return errMethodNotAllowed
	}
	if err := s.buffers.acquire(r.Context()); err != nil {
		return err
	}
	defer s.buffers.release()
	var sendErr error // once a reply has begun, no other copy can mend it
	err = s.find(ref.Hash, anyMount, func(m *mount) error {
		f, size, err := m.openVerified(r.Context(), ref.Hash)
		if err != nil {
			return err
		}
		defer f.Close()
		if ref.Size != 0 && ref.Size != size {
			return &statusError{http.StatusBadGateway,
				fmt.Sprintf("stored block has %d bytes, locator says %d", size, ref.Size)}
		}
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusOK)
			return nil
		}
		_, sendErr = io.Copy(w, f)
		return nil
	})
	if err != nil {
		return err
	}
	return sendErr
}

// putBlock answers PUT.
func (s *Server) putBlock(w http.ResponseWriter, r *http.Request, locator string) error {
	ref, err := parseLocator(locator)
	if err != nil {
		return err
	}
	if r.ContentLength > maxBlockSize {
		return errTooLarge
	}
	if err := s.buffers.acquire(r.Context()); err != nil {
		return err
	}
	defer s.buffers.release()
	buf, err := s.buffers.get()
	if err != nil {
		return err
	}
	defer s.buffers.put(buf)
	data, hash, err := receive(r, buf)
	if err != nil {
		return err
	}
	if hash != ref.Hash {
		return &statusError{http.StatusBadRequest,
			fmt.Sprintf("content hash %s did not match specified locator %s", hash, ref.Hash)}
	}
	st, err := s.store(r.Context(), hash, data, wantedClasses(r))
	if err != nil {
		return err
	}
	answer := hash + "+" + strconv.Itoa(len(data))
	if found := tokens(r); len(found) > 0 {
		answer = s.sign(answer, found[0])
	}
	w.Header().Set("X-Keep-Replicas-Stored", strconv.Itoa(st.replicas))
	w.Header().Set("X-Keep-Storage-Classes-Confirmed", st.header())
	_, err = fmt.Fprintln(w, answer)
	return err
}

// receive reads the body into buf and hashes it on the way.
func receive(r *http.Request, buf []byte) (data []byte, hash string, err error) {
	sum := md5.New()
	n := 0
	for n < len(buf) {
		// Hash what has come while it is still in the CPU's cache.
		m, err := r.Body.Read(buf[n:min(len(buf), n+256<<10)])
		sum.Write(buf[n : n+m])
		n += m
		if err == io.EOF {
			return buf[:n], hex.EncodeToString(sum.Sum(nil)), nil
		}
		if err != nil {
			return nil, "", bodyError(r, err)
		}
	}
	var one [1]byte
	switch m, err := io.ReadFull(r.Body, one[:]); {
	case m > 0:
		return nil, "", errTooLarge
	case err != io.EOF:
		return nil, "", bodyError(r, err)
	}
	return buf[:n], hex.EncodeToString(sum.Sum(nil)), nil
}

func bodyError(r *http.Request, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		// The request's context may have ended, too: the client has gone.
		return &statusError{http.StatusBadRequest, "request body ended early"}
	}
	if r.Context().Err() != nil {
		return r.Context().Err()
	}
	return &statusError{http.StatusBadRequest, "read request body: " + err.Error()}
}

// wantedClasses parses X-Keep-Storage-Classes.
func wantedClasses(r *http.Request) []string {
	var classes []string
	for _, h := range r.Header.Values("X-Keep-Storage-Classes") {
		for c := range strings.SplitSeq(h, ",") {
			if c = strings.TrimSpace(c); c != "" {
				classes = append(classes, c)
			}
		}
	}
	return classes
}

// sign appends a permission signature for token, if there is a key.
func (s *Server) sign(locator, token string) string {
	return s.signer.SignLocator(locator, token, time.Now().Add(s.cfg.BlobSigningTTL))
}
