package keepstore

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sort"
	"strings"
)

func anyMount(*mount) bool      { return true }
func (m *mount) writable() bool { return m.allowWrite }

// touchBlock answers TOUCH: the block is as new as one just written, on the
// first writable mount that has it.
func (s *Server) touchBlock(r *http.Request, locator string) error {
	if err := s.checkAdmin(r); err != nil {
		return err
	}
	hash := locator[:32]
	return s.find(hash, (*mount).writable, func(m *mount) error { return m.touch(r.Context(), hash) })
}

// deleteBlock answers DELETE: the block is trashed on all mounts that allow
// it, unless it is younger than the signature TTL.
func (s *Server) deleteBlock(r *http.Request, locator string) error {
	if err := s.checkAdmin(r); err != nil {
		return err
	}
	if !s.cfg.BlobTrash {
		return errMethodNotAllowed
	}
	hash := locator[:32]
	result := error(errNotFound)
	for _, m := range s.mounts {
		if !m.allowTrash {
			continue
		}
		err := m.trash(r.Context(), hash, 0)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("mount %s: %w", m.uuid, err)
		default:
			result = nil
		}
	}
	return result
}

// untrashBlock answers PUT /untrash/HASH.
func (s *Server) untrashBlock(r *http.Request, locator string) error {
	if err := s.checkAdmin(r); err != nil {
		return err
	}
	hash := locator[:32]
	return s.find(hash, (*mount).writable, func(m *mount) error { return m.untrash(r.Context(), hash) })
}

// serveMounts answers GET /mounts.
func (s *Server) serveMounts(w http.ResponseWriter, r *http.Request) error {
	if err := s.checkAdmin(r); err != nil {
		return err
	}
	type item struct {
		UUID           string          `json:"uuid"`
		DeviceID       string          `json:"device_id"`
		AllowWrite     bool            `json:"allow_write"`
		AllowTrash     bool            `json:"allow_trash"`
		Replication    int             `json:"replication"`
		StorageClasses map[string]bool `json:"storage_classes"`
	}
	items := []item{}
	for _, m := range s.mounts {
		it := item{m.uuid, m.deviceID(), m.allowWrite, m.allowTrash, m.replication, map[string]bool{}}
		for _, c := range m.classes {
			it.StorageClasses[c] = true
		}
		items = append(items, it)
	}
	sort.Slice(items, func(i, j int) bool { return items[i].UUID < items[j].UUID })
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(items)
}

// serveMountBlocks answers GET /mounts/UUID/blocks[/PREFIX][?prefix=PREFIX].
func (s *Server) serveMountBlocks(w http.ResponseWriter, r *http.Request, path string) error {
	uuid, rest, _ := strings.Cut(path, "/")
	blocks, prefix, _ := strings.Cut(rest, "/")
	if blocks != "blocks" {
		return errBadRequest
	}
	if prefix == "" {
		prefix = r.URL.Query().Get("prefix")
	}
	for _, m := range s.mounts {
		if m.uuid == uuid {
			return s.serveIndex(w, r, []*mount{m}, prefix)
		}
	}
	if err := s.checkAdmin(r); err != nil {
		return err
	}
	return &statusError{http.StatusNotFound, "mount not found"}
}

// serveIndex lists blocks, one "HASH+SIZE MTIME_NS" a line, once for each
// mount that has a copy. An empty line says that the list is complete: if it
// is not, the connection ends without one.
func (s *Server) serveIndex(w http.ResponseWriter, r *http.Request, mounts []*mount, prefix string) error {
	if err := s.checkAdmin(r); err != nil {
		return err
	}
	if len(prefix) > 32 || !isHex(prefix) {
		return errBadRequest
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := bufio.NewWriterSize(w, 64<<10)
	for _, m := range mounts {
		err := m.index(r.Context(), prefix, func(e entry) error {
			_, err := fmt.Fprintf(out, "%s+%d %d\n", e.hash, e.size, e.mtime.UnixNano())
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := out.WriteByte('\n'); err != nil {
		return err
	}
	return out.Flush()
}

// serveHealth answers GET /_health/ping.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	found := tokens(r)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, errBadRequest.text, errBadRequest.status)
	case s.cfg.ManagementToken == "":
		http.Error(w, "disabled", http.StatusNotFound)
	case len(found) == 0:
		http.Error(w, "authorization required", http.StatusUnauthorized)
	case !sameToken(found[0], s.cfg.ManagementToken):
		http.Error(w, "authorization error", http.StatusForbidden)
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"health":"OK"}`+"\n")
	}
}
