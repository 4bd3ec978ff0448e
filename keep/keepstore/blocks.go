package keepstore

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
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
	s.attend(w, r)
	st, size, err := s.storeBody(r, ref.Hash, wantedClasses(r))
	if err != nil {
		return err
	}
	answer := ref.Hash + "+" + strconv.Itoa(size)
	if found := tokens(r); len(found) > 0 {
		answer = s.sign(answer, found[0])
	}
	w.Header().Set("X-Keep-Replicas-Stored", strconv.Itoa(st.replicas))
	w.Header().Set("X-Keep-Storage-Classes-Confirmed", st.header())
	_, err = fmt.Fprintln(w, answer)
	return err
}

// storeBody stores the body of a request, whose MD5 must be hash, and returns
// its size in bytes.
func (s *Server) storeBody(r *http.Request, hash string, classes []string) (*stored, int, error) {
	body := io.Reader(r.Body)
	m, file := s.direct(hash, classes)
	if file != nil {
		defer file.discard()
		size, rest, err := receiveFile(r, file, hash)
		if err == nil {
			st := newStored(classes)
			st.add(m)
			return st, size, nil
		}
		if rest == nil {
			return nil, 0, err
		}
		s.log.Error("write", "mount", m.uuid, "block", hash, "error", err.Error())
		body = rest
	}
	buf, err := s.buffers.get()
	if err != nil {
		return nil, 0, err
	}
	defer s.buffers.put(buf)
	data, err := receive(r, body, buf, hash)
	if err != nil {
		return nil, 0, err
	}
	if file != nil {
		file.discard() // makes room
	}
	st, err := s.store(r.Context(), hash, data, classes)
	return st, len(data), err
}

// direct returns a new file for a block if that is all that storing it takes: no
// volume on which it is wanted has it already, or may have it, and the first one,
// a directory, will do. Then the block needs no memory: it is written while it
// comes in.
func (s *Server) direct(hash string, classes []string) (first *mount, file *newFile) {
	st := newStored(classes)
	for _, m := range probeOrder(s.mounts, hash) {
		if !m.allowWrite || !st.wants(m) {
			continue
		}
		d, ok := m.volume.(*directory)
		if !ok || d.serial != nil || !d.lacks(hash) {
			return nil, nil
		}
		if first == nil {
			first = m
		}
	}
	if first == nil {
		return nil, nil
	}
	st.add(first)
	for _, m := range s.mounts {
		if m.allowWrite && st.wants(m) {
			return nil, nil
		}
	}
	// Why it cannot be created, the ordinary way will find out.
	file, _ = first.volume.(*directory).create(hash)
	return first, file
}

// receiveFile reads the body into file, hashes it on the way, and commits it. If
// it is the disk that fails, it returns what there is to be read instead of the
// body, which lasts until file is discarded.
func receiveFile(r *http.Request, file *newFile, hash string) (size int, rest io.Reader, err error) {
	bp := hashBuffers.Get().(*[]byte)
	defer hashBuffers.Put(bp)
	sum := md5.New()
	for {
		n, readErr := r.Body.Read(*bp)
		sum.Write((*bp)[:n])
		if size+n > maxBlockSize {
			return 0, nil, errTooLarge
		}
		if _, err := file.Write((*bp)[:n]); err != nil {
			return 0, io.MultiReader(file.content(size), bytes.NewReader(bytes.Clone((*bp)[:n])), r.Body), err
		}
		size += n
		if readErr == io.EOF {
			break
		}
		if readErr != nil {
			return 0, nil, bodyError(r, readErr)
		}
	}
	if err := checkHash(sum, hash); err != nil {
		return 0, nil, err
	}
	if err := r.Context().Err(); err != nil {
		return 0, nil, err
	}
	if err := file.commit(); err != nil {
		if file.done { // but perhaps not for good: it must not be found there now
			return 0, nil, fmt.Errorf("%w: %w", errUnavailable, err)
		}
		return 0, file.content(size), err
	}
	return size, nil, nil
}

// receive reads the body into buf and hashes it on the way.
func receive(r *http.Request, body io.Reader, buf []byte, hash string) ([]byte, error) {
	sum := md5.New()
	n := 0
	for n < len(buf) {
		// Hash what has come while it is still in the CPU's cache.
		m, err := body.Read(buf[n:min(len(buf), n+256<<10)])
		sum.Write(buf[n : n+m])
		n += m
		if err == io.EOF {
			return buf[:n], checkHash(sum, hash)
		}
		if err != nil {
			return nil, bodyError(r, err)
		}
	}
	var one [1]byte
	switch m, err := io.ReadFull(body, one[:]); {
	case m > 0:
		return nil, errTooLarge
	case err != io.EOF:
		return nil, bodyError(r, err)
	}
	return buf[:n], checkHash(sum, hash)
}

func checkHash(sum hash.Hash, want string) error {
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return &statusError{http.StatusBadRequest,
			fmt.Sprintf("content hash %s did not match specified locator %s", got, want)}
	}
	return nil
}

func bodyError(r *http.Request, err error) error {
	if errors.Is(err, errUnavailable) {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		// The request's context may have ended, too: the client has gone.
		return &statusError{http.StatusBadRequest, "request body ended early"}
	}
	if r.Context().Err() != nil {
		return r.Context().Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &statusError{http.StatusRequestTimeout, "nothing more of the request body has come"}
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
