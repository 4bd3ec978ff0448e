package keepstore

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"crunch-oci/keep"
)

// worklist is a list that workers empty and that a new list replaces.
type worklist[T any] struct {
	mu    sync.Mutex
	items []T
	wake  chan struct{} // has a token when there may be items

	working atomic.Int64 // items being worked on
}

// pending is the number of items that nobody works on yet.
func (l *worklist[T]) pending() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.items))
}

func newWorklist[T any](ctx context.Context, wg *sync.WaitGroup, workers int, do func(context.Context, T)) *worklist[T] {
	l := &worklist[T]{wake: make(chan struct{}, 1)}
	for range workers {
		wg.Go(func() {
			for {
				select {
				case <-l.wake:
				case <-ctx.Done():
					return
				}
				for item, ok := l.next(); ok && ctx.Err() == nil; item, ok = l.next() {
					l.working.Add(1)
					do(ctx, item)
					l.working.Add(-1)
				}
			}
		})
	}
	return l
}

func (l *worklist[T]) next() (item T, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.items) == 0 {
		return item, false
	}
	item, l.items = l.items[0], l.items[1:]
	if len(l.items) > 0 {
		l.signal() // there is work for one more
	}
	return item, true
}

func (l *worklist[T]) replace(items []T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = items
	l.signal()
}

func (l *worklist[T]) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// trashItem asks to trash a block if its time stamp still is BlockMtime (ns).
type trashItem struct {
	Locator    string `json:"locator"`
	BlockMtime int64  `json:"block_mtime"`
	MountUUID  string `json:"mount_uuid"`
}

// pullItem asks to copy a block from one of the servers.
type pullItem struct {
	Locator   string   `json:"locator"`
	Servers   []string `json:"servers"`
	MountUUID string   `json:"mount_uuid"`
}

// maxListBytes bounds the body of a trash or pull list.
const maxListBytes = 1 << 30

func (s *Server) putTrash(r *http.Request) error {
	if err := s.checkAdmin(r); err != nil {
		return err
	}
	var items []trashItem
	if err := json.NewDecoder(io.LimitReader(r.Body, maxListBytes)).Decode(&items); err != nil {
		return fmt.Errorf("decode trash list: %w", err)
	}
	s.trash.replace(items)
	return nil
}

func (s *Server) putPull(r *http.Request) error {
	if err := s.checkAdmin(r); err != nil {
		return err
	}
	var items []pullItem
	if err := json.NewDecoder(io.LimitReader(r.Body, maxListBytes)).Decode(&items); err != nil {
		return fmt.Errorf("decode pull list: %w", err)
	}
	if len(items) > 0 {
		if ref, err := parseLocator(items[0].Locator); err != nil || ref.Size <= 0 {
			return &statusError{http.StatusBadRequest, "locator without size in pull list"}
		}
	}
	s.pull.replace(items)
	return nil
}

func (s *Server) trashOne(ctx context.Context, item trashItem) {
	ref, err := parseLocator(item.Locator)
	if err != nil || !s.cfg.BlobTrash || item.BlockMtime == 0 { // 0 would be any
		return
	}
	for _, m := range s.mounts {
		if !m.allowTrash || item.MountUUID != "" && item.MountUUID != m.uuid {
			continue
		}
		if err := m.trash(ctx, ref.Hash, item.BlockMtime); err != nil {
			s.log.Error("trash", "mount", m.uuid, "block", ref.Hash, "error", err.Error())
		}
	}
}

func (s *Server) pullOne(ctx context.Context, item pullItem) {
	ref, err := parseLocator(item.Locator)
	if err != nil || ref.Size <= 0 || ref.Size > maxBlockSize {
		return
	}
	if err := s.copyFrom(ctx, ref, item); err != nil {
		s.log.Error("pull", "block", ref.Hash, "error", err.Error())
	}
}

// copyFrom fetches a block from the first server that has it, and writes it to
// the wanted mount (or the first writable one in probe order).
func (s *Server) copyFrom(ctx context.Context, ref keep.PathLocator, item pullItem) error {
	if err := s.buffers.acquire(ctx); err != nil {
		return err
	}
	defer s.buffers.release()
	buf, err := s.buffers.get()
	if err != nil {
		return err
	}
	defer s.buffers.put(buf)
	data := buf[:ref.Size]
	for _, server := range item.Servers {
		if err = s.fetch(ctx, server, ref, data); err == nil {
			break
		}
	}
	if len(item.Servers) == 0 || err != nil {
		return fmt.Errorf("no server could deliver the block: %w", err)
	}
	return s.find(ref.Hash, func(m *mount) bool {
		return m.allowWrite && (item.MountUUID == "" || item.MountUUID == m.uuid)
	}, func(m *mount) error {
		return m.write(ctx, ref.Hash, data)
	})
}

func (s *Server) fetch(ctx context.Context, server string, ref keep.PathLocator, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	locator := s.sign(fmt.Sprintf("%s+%d", ref.Hash, ref.Size), s.cfg.SystemRootToken)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(server, "/")+"/"+locator, nil)
	if err != nil {
		return fmt.Errorf("server %q: not a URL", server)
	}
	req.Header.Set("Authorization", "Bearer "+s.cfg.SystemRootToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("server %s: no reply", server) // the error holds the signed locator
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("server %s: %s", server, resp.Status)
	}
	if _, err := io.ReadFull(resp.Body, data); err != nil {
		return fmt.Errorf("server %s: %w", server, err)
	}
	if sum := md5.Sum(data); hex.EncodeToString(sum[:]) != ref.Hash {
		return fmt.Errorf("server %s: %w", server, errChecksum)
	}
	return nil
}
