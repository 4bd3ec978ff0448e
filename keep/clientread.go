package keep

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// ReadError says that no service could give a block.
type ReadError struct {
	// Locator is the block's, without hints.
	Locator Locator
	// Services holds the latest failure of each service that was asked.
	Services []*ServiceError
	// Attempts is the number of rounds made.
	Attempts int
}

// Error lists what each service answered.
func (e *ReadError) Error() string {
	if e.NotFound() {
		return fmt.Sprintf("block %s not found on any of %d Keep services", e.Locator, len(e.Services))
	}
	list := make([]string, len(e.Services))
	for i, s := range e.Services {
		list[i] = s.Error()
	}
	return fmt.Sprintf("cannot read block %s (%d attempts): %s", e.Locator, e.Attempts, strings.Join(list, "; "))
}

// NotFound tells whether every service answered that it does not have the
// block: asking again is of no use.
func (e *ReadError) NotFound() bool {
	for _, s := range e.Services {
		if s.Status != http.StatusNotFound && s.Status != http.StatusGone {
			return false
		}
	}
	return len(e.Services) > 0
}

// Missing tells whether every service answered that it does not have the block, or
// not for this token.
func (e *ReadError) Missing() bool {
	for _, s := range e.Services {
		switch s.Status {
		case http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		default:
			return false
		}
	}
	return len(e.Services) > 0
}

// Refused tells whether no service failed otherwise than by saying that the block
// is not there or not to be read with this signature, and one said the latter: a
// newer signature may do.
func (e *ReadError) Refused() bool {
	denied := false
	for _, s := range e.Services {
		switch s.Status {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
			denied = true
		case http.StatusNotFound, http.StatusGone:
		default:
			return false
		}
	}
	return denied
}

// Temporary tells whether some service may still have it.
func (e *ReadError) Temporary() bool {
	for _, s := range e.Services {
		if s.Temporary() {
			return true
		}
	}
	return false
}

// Is makes errors.Is(err, ErrNotFound) ask NotFound.
func (e *ReadError) Is(target error) bool { return target == ErrNotFound && e.NotFound() }

// Unwrap returns the failures of the services.
func (e *ReadError) Unwrap() []error {
	list := make([]error, len(e.Services))
	for i, s := range e.Services {
		list[i] = s
	}
	return list
}

// ReadBlock fetches a block and verifies its length and MD5. It asks the
// services in probe order, those that failed in a way that may pass again in
// further rounds. Simultaneous calls for one block share the work and the
// result, which must not be changed. The error is a *ReadError, which is
// ErrNotFound if every service said 404; or ErrNoServices, or ctx's.
func (c *Client) ReadBlock(ctx context.Context, loc Locator) ([]byte, error) {
	if err := checkReadable(loc); err != nil || loc.IsEmptyBlock() {
		return []byte{}, err
	}
	return c.shared.Do(ctx, c.ctx, loc.Hash(), loc.String(), func(ctx context.Context) ([]byte, error) {
		data := make([]byte, loc.Size())
		if err := c.CopyBlock(ctx, loc, inPlace(data)); err != nil {
			return nil, err
		}
		return data, nil
	})
}

// CopyBlock fetches a block like ReadBlock, but writes it to w as it arrives and
// holds next to nothing in memory. What is in w is only good if there is no
// error: a second attempt writes over what the first one wrote. If w fails,
// there is none, and the error is w's, wrapped. Simultaneous calls do not share.
func (c *Client) CopyBlock(ctx context.Context, loc Locator, w io.WriterAt) error {
	if err := checkReadable(loc); err != nil || loc.IsEmptyBlock() {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	var failed error // w's
	err := c.getBlock(ctx, loc, func(resp *http.Response) (err error) {
		err = copyVerified(w, resp, loc, &failed)
		if failed != nil {
			cancel()
		}
		return err
	})
	if failed != nil {
		return fmt.Errorf("keep a copy of block %s: %w", loc.WithoutHints(), failed)
	}
	return err
}

func checkReadable(loc Locator) error {
	switch {
	case loc.IsZero():
		return ErrInvalidLocator
	case loc.Size() > MaxBlockSize:
		return fmt.Errorf("read block %s: %w", loc.WithoutHints(), ErrBlockTooBig)
	}
	return nil
}

// getBlock asks the services for a block until take, which is given each reply,
// has no objection.
func (c *Client) getBlock(ctx context.Context, loc Locator, take func(*http.Response) error) error {
	failed := make(map[string]*ServiceError)
	var order []string
	result := &ReadError{Locator: loc.WithoutHints()}
	badSums := make(map[string]int)
	done := false
	err := c.roundsOf(ctx, loc.Hash(), c.cfg.ReadRetries, c.cfg.ReadRetryDelay, func(r round) bool {
		result.Attempts++
		retry := false
		for _, s := range hintedServices(loc, r.services) {
			old := failed[s.URL]
			if old != nil && (!old.Temporary() || badSums[s.URL] > 1) {
				continue
			}
			a := attempt{method: http.MethodGet, service: s, path: loc.String(), round: r}
			page := false
			e := c.do(ctx, a, func(resp *http.Response) error {
				page = isPage(resp)
				return take(resp)
			})
			if e == nil {
				done = true
				return true
			}
			if ctx.Err() != nil {
				return true
			}
			if errors.Is(e, ErrChecksum) && !page {
				// Once it may have happened on the way here; twice it is the
				// stored copy, or the size hint is wrong. What is not a block at
				// all says nothing of the block.
				badSums[s.URL]++
			}
			if old == nil {
				order = append(order, s.URL)
			}
			failed[s.URL] = e
			retry = retry || e.Temporary() && badSums[s.URL] < 2
		}
		return !retry && len(order) > 0
	})
	switch {
	case done:
		return nil
	case err != nil:
		return fmt.Errorf("read block %s: %w", result.Locator, err)
	case len(order) == 0:
		return fmt.Errorf("read block %s: %w", result.Locator, ErrNoServices)
	}
	for _, url := range order {
		result.Services = append(result.Services, failed[url])
	}
	return result
}

// isPage tells whether a reply is made for people or for other programs, by a
// proxy or portal on the way, say, while the service cannot be reached. Blocks
// come as application/octet-stream; one that is text may be declared as that.
func isPage(resp *http.Response) bool {
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	switch strings.ToLower(strings.TrimSpace(kind)) {
	case "text/html", "application/json", "application/xhtml+xml":
		return true
	}
	return false
}

// hintedServices puts the services that the locator's +K@ hints name before the
// others.
func hintedServices(loc Locator, services []Service) []Service {
	var first []Service
	for _, h := range loc.Hints() {
		where, ok := strings.CutPrefix(h, "K@")
		switch {
		case !ok:
		case len(where) == 5 && isAlphanumeric(where):
			first = append(first, Service{URL: "https://keep." + where + ".arvadosapi.com", Type: "proxy"})
		default:
			for _, s := range services {
				if s.UUID == where {
					first = append(first, s)
				}
			}
		}
	}
	if first == nil {
		return services
	}
	return uniqueServices(append(first, services...))
}

// pieces are the buffers of copyVerified. A piece is still in the processor's
// cache when it is hashed and written.
var pieces = sync.Pool{New: func() any { return new([pieceSize]byte) }}

const pieceSize = 256 << 10

// inPlace is the memory where a block is to be.
type inPlace []byte

// WriteAt implements io.WriterAt.
func (m inPlace) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// copyVerified writes a block to w and checks it while it arrives. An error of w
// is stored in failed, too.
func copyVerified(w io.WriterAt, resp *http.Response, loc Locator, failed *error) error {
	if err := checkLength(resp, loc); err != nil {
		return err
	}
	buf := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(buf)
	place, inMemory := w.(inPlace)
	sum := md5.New()
	for at := int64(0); at < loc.Size(); {
		piece := buf[:min(pieceSize, loc.Size()-at)]
		if inMemory {
			piece = place[at:][:len(piece)] // where it is to be
		}
		n, err := io.ReadFull(resp.Body, piece)
		if err != nil {
			return brokeOff(at+int64(n), loc, err)
		}
		sum.Write(piece)
		if !inMemory {
			if _, err := w.WriteAt(piece, at); err != nil {
				*failed = err
				return err
			}
		}
		at += int64(n)
	}
	return checkEnd(resp, loc, sum)
}

func checkLength(resp *http.Response, loc Locator) error {
	if resp.ContentLength >= 0 && resp.ContentLength != loc.Size() {
		return fmt.Errorf("%w: reply has %d bytes", ErrChecksum, resp.ContentLength)
	}
	return nil
}

func brokeOff(n int64, loc Locator, err error) error {
	return fmt.Errorf("reply broke off after %d of %d bytes: %w", n, loc.Size(), err)
}

// checkEnd is given a reply of which as many bytes as the block has were read.
func checkEnd(resp *http.Response, loc Locator, sum hash.Hash) error {
	if n, _ := io.ReadFull(resp.Body, make([]byte, 1)); n > 0 {
		return fmt.Errorf("%w: reply has more than %d bytes", ErrChecksum, loc.Size())
	}
	if hex.EncodeToString(sum.Sum(nil)) != loc.Hash() {
		return fmt.Errorf("%w: bad checksum", ErrChecksum)
	}
	return nil
}

// LocalLocator implements Localizer: a keepstore of the local cluster is asked
// to fetch the block and to sign its own copy.
func (c *Client) LocalLocator(ctx context.Context, loc Locator) (local Locator, err error) {
	if !loc.IsRemote() {
		return loc, nil
	}
	header := http.Header{"X-Keep-Signature": {"local, time=" + time.Now().UTC().Format(time.RFC3339)}}
	result := &ReadError{Locator: loc.WithoutHints()}
	err = c.rounds(ctx, loc.Hash(), func(r round) bool {
		result.Attempts++
		var failed []*ServiceError
		retry := false
		for _, s := range r.services {
			a := attempt{method: http.MethodHead, service: s, path: loc.String(), header: header, round: r}
			e := c.do(ctx, a, func(resp *http.Response) (err error) {
				local, err = ParseLocator(resp.Header.Get("X-Keep-Locator"))
				if err == nil && (local.Hash() != loc.Hash() || local.IsRemote()) {
					err = errors.New("X-Keep-Locator names another block or is remote itself")
				}
				return err
			})
			if e == nil || ctx.Err() != nil {
				result.Services = nil
				return true
			}
			failed = append(failed, e)
			retry = retry || e.Temporary()
		}
		result.Services = failed
		return !retry
	})
	switch {
	case err != nil:
		return Locator{}, fmt.Errorf("copy block %s to the local cluster: %w", result.Locator, err)
	case result.Services != nil:
		return Locator{}, fmt.Errorf("copy block to the local cluster: %w", result)
	case local.IsZero():
		return Locator{}, fmt.Errorf("copy block %s to the local cluster: %w", result.Locator, ErrNoServices)
	}
	return local, nil
}
