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
		if s.Status != http.StatusNotFound {
			return false
		}
	}
	return len(e.Services) > 0
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
	switch {
	case loc.IsZero():
		return nil, ErrInvalidLocator
	case loc.IsEmptyBlock():
		return []byte{}, nil
	case loc.Size() > MaxBlockSize:
		return nil, fmt.Errorf("read block %s: %w", loc.WithoutHints(), ErrBlockTooBig)
	}
	return c.shared.fetch(ctx, c.ctx, loc, c.readBlock)
}

func (c *Client) readBlock(ctx context.Context, loc Locator) (data []byte, err error) {
	failed := make(map[string]*ServiceError)
	var order []string
	result := &ReadError{Locator: loc.WithoutHints()}
	badSums := make(map[string]int)
	err = c.rounds(ctx, loc.Hash(), func(r round) bool {
		result.Attempts++
		retry := false
		for _, s := range hintedServices(loc, r.services) {
			old := failed[s.URL]
			if old != nil && (!old.Temporary() || badSums[s.URL] > 1) {
				continue
			}
			a := attempt{method: http.MethodGet, service: s, path: loc.String(), round: r}
			page := false
			e := c.do(ctx, a, func(resp *http.Response) (err error) {
				page = isPage(resp)
				data, err = readVerified(resp, loc)
				return err
			})
			if e == nil {
				return true
			}
			data = nil
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
	case data != nil:
		return data, nil
	case err != nil:
		return nil, fmt.Errorf("read block %s: %w", result.Locator, err)
	case len(order) == 0:
		return nil, fmt.Errorf("read block %s: %w", result.Locator, ErrNoServices)
	}
	for _, url := range order {
		result.Services = append(result.Services, failed[url])
	}
	return nil, result
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

// readVerified reads a block and checks it while it arrives.
func readVerified(resp *http.Response, loc Locator) ([]byte, error) {
	if resp.ContentLength >= 0 && resp.ContentLength != loc.Size() {
		return nil, fmt.Errorf("%w: reply has %d bytes", ErrChecksum, resp.ContentLength)
	}
	data := make([]byte, loc.Size())
	sum := md5.New()
	if n, err := io.ReadFull(hashingReader{resp.Body, sum}, data); err != nil {
		return nil, fmt.Errorf("reply broke off after %d of %d bytes: %w", n, len(data), err)
	}
	if n, _ := io.ReadFull(resp.Body, make([]byte, 1)); n > 0 {
		return nil, fmt.Errorf("%w: reply has more than %d bytes", ErrChecksum, len(data))
	}
	if hex.EncodeToString(sum.Sum(nil)) != loc.Hash() {
		return nil, fmt.Errorf("%w: bad checksum", ErrChecksum)
	}
	return data, nil
}

// hashingReader feeds what is read to a hash in pieces that are still in the
// processor's cache.
type hashingReader struct {
	io.Reader
	sum hash.Hash
}

func (r hashingReader) Read(p []byte) (int, error) {
	const most = 256 << 10
	n, err := r.Reader.Read(p[:min(len(p), most)])
	r.sum.Write(p[:n])
	return n, err
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
