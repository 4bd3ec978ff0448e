package keep

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// WriteError says that a block could not be stored as often as wanted.
type WriteError struct {
	// Hash is the block's.
	Hash string
	// Wanted and Stored are numbers of copies. Classes are the storage classes
	// that still lack copies.
	Wanted, Stored int
	Classes        []string
	// Services holds the latest failure of each service that did not store it.
	Services []*ServiceError
	// Attempts is the number of rounds made.
	Attempts int
}

// Error begins with the words of the reference client and lists, for each
// service, the status (0 if there was no reply) and the beginning of its text.
func (e *WriteError) Error() string {
	const most = 100
	list := make([]string, len(e.Services))
	for i, s := range e.Services {
		text := s.Body
		if s.Err != nil {
			text = s.Err.Error()
		}
		text = s.URL + ": " + strings.Join(strings.Fields(text), " ")
		if len(text) > most {
			text = text[:most]
		}
		list[i] = fmt.Sprintf("[%d] %s", s.Status, text)
	}
	text := fmt.Sprintf("Could not write sufficient replicas: block %s, wanted %d, stored %d", e.Hash, e.Wanted, e.Stored)
	if len(e.Classes) > 0 {
		text += ", missing in storage classes " + strings.Join(e.Classes, ",")
	}
	if len(list) > 0 {
		text += ": " + strings.Join(list, "; ")
	}
	return text
}

// Unwrap returns the failures of the services.
func (e *WriteError) Unwrap() []error {
	list := make([]error, len(e.Services))
	for i, s := range e.Services {
		list[i] = s
	}
	return list
}

// WriteBlock stores data with the replication and in the storage classes wanted,
// going round the writable services until they confirm it. The error is a
// *WriteError, or ErrBlockTooBig, ErrNoServices or ctx's.
func (c *Client) WriteBlock(ctx context.Context, data []byte, opts WriteOptions) (Locator, error) {
	if len(data) > MaxBlockSize {
		return Locator{}, ErrBlockTooBig
	}
	sum := md5.Sum(data)
	return c.write(ctx, hex.EncodeToString(sum[:]), memory(data), opts)
}

// WritePart is WriteBlock for a part of a file whose MD5 is known. The part is
// not held in memory: each service is sent what is in the file by then, so that
// it refuses the block if that is not what it was. The caller then has to look
// whether the file has changed. If the part cannot be read, the error is that
// of reading.
func (c *Client) WritePart(ctx context.Context, hash string, part FilePart, opts WriteOptions) (Locator, error) {
	if part.Length > MaxBlockSize {
		return Locator{}, ErrBlockTooBig
	}
	return c.write(ctx, hash, part, opts)
}

func (c *Client) write(ctx context.Context, hash string, body content, opts WriteOptions) (Locator, error) {
	w := blockWrite{
		c:      c,
		body:   body,
		hash:   hash,
		wanted: opts.Replication,
		failed: make(map[string]*ServiceError),
		stored: make(map[string]bool),
	}
	if w.wanted <= 0 {
		w.wanted = c.cfg.DefaultReplication
	}
	classes := opts.StorageClasses
	if len(classes) == 0 {
		classes = c.cfg.StorageClasses
	}
	w.wantClasses(classes)

	attempts, writable := 0, false
	err := c.rounds(ctx, w.hash, func(r round) bool {
		attempts++
		var services []Service
		for _, s := range r.services {
			if !s.ReadOnly {
				services = append(services, s)
			}
		}
		writable = writable || len(services) > 0
		r.services = services
		retry := w.round(ctx, r)
		return w.done() || w.unread != nil || len(services) > 0 && !retry
	})
	switch {
	case w.done():
		return w.loc, nil
	case w.unread != nil:
		return Locator{}, fmt.Errorf("write block %s: %w", w.hash, w.unread)
	case err != nil:
		return Locator{}, fmt.Errorf("write block %s: %w", w.hash, err)
	case !writable:
		return Locator{}, fmt.Errorf("write block %s: %w", w.hash, ErrNoServices)
	}
	return Locator{}, w.error(attempts)
}

// blockWrite is the state of one WriteBlock, used by one goroutine.
type blockWrite struct {
	c      *Client
	body   content
	hash   string
	unread error // why body could not be read, which ends the write

	wanted  int
	copies  int
	classes []classTodo // in the order asked for; nil when not tracked

	loc    Locator // from the latest success
	order  []string
	failed map[string]*ServiceError
	stored map[string]bool // services that need no further attempt
}

type classTodo struct {
	name string
	todo int
}

func (w *blockWrite) wantClasses(names []string) {
	seen := make(map[string]bool)
	for _, name := range names {
		if !seen[name] {
			seen[name] = true
			w.classes = append(w.classes, classTodo{name, w.wanted})
		}
	}
}

// missing lists the classes that lack copies and the smallest number that one of
// them lacks; without classes, the number of copies missing.
func (w *blockWrite) missing() (names []string, todo int) {
	if w.classes == nil {
		return nil, w.wanted - w.copies
	}
	for _, c := range w.classes {
		if c.todo > 0 {
			names = append(names, c.name)
			if todo == 0 || c.todo < todo {
				todo = c.todo
			}
		}
	}
	return names, todo
}

func (w *blockWrite) done() bool {
	_, todo := w.missing()
	return w.copies > 0 && todo <= 0
}

// writeResult is how one PUT ended.
type writeResult struct {
	service Service
	err     *ServiceError
	loc     Locator
	copies  int
	classes map[string]int // nil: the reply does not say
}

// round puts the block to the services that may still take it, as many at a time
// as copies are missing if all are keepstores, and tells whether another round
// may help.
func (w *blockWrite) round(ctx context.Context, r round) (retry bool) {
	var todo []Service
	for _, s := range r.services {
		if old := w.failed[s.URL]; !w.stored[s.URL] && (old == nil || old.writeTemporary()) {
			todo = append(todo, s)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan writeResult)
	active := 0
	for {
		classes, parallel := w.missing()
		if !allDisks(r.services) {
			parallel = 1
		}
		for !w.done() && w.unread == nil && ctx.Err() == nil && active < parallel && len(todo) > 0 {
			s := todo[0]
			todo = todo[1:]
			active++
			go func() { results <- w.put(ctx, r, s, classes) }()
		}
		if active == 0 {
			cancel()
			return retry
		}
		res := <-results
		active--
		if ctx.Err() == nil {
			w.note(res)
			retry = retry || res.err != nil && res.err.writeTemporary()
		}
		if w.done() || w.unread != nil {
			// What is still on its way would be one copy too many.
			cancel()
		}
	}
}

// note counts the outcome of one PUT.
func (w *blockWrite) note(res writeResult) {
	if res.err != nil && errors.Is(res.err, ErrUnreadable) {
		w.unread = res.err.Err
		return
	}
	if res.err != nil {
		if w.failed[res.service.URL] == nil {
			w.order = append(w.order, res.service.URL)
		}
		w.failed[res.service.URL] = res.err
		return
	}
	w.loc = res.loc
	w.copies += res.copies
	w.stored[res.service.URL] = true
	if res.classes == nil {
		w.classes = nil
	}
	for i := range w.classes {
		w.classes[i].todo -= res.classes[w.classes[i].name]
	}
}

// put sends the block to one service.
func (w *blockWrite) put(ctx context.Context, r round, s Service, classes []string) writeResult {
	header := http.Header{
		"Content-Type":            {"application/octet-stream"},
		"X-Keep-Desired-Replicas": {strconv.Itoa(w.wanted)},
	}
	if len(classes) > 0 {
		header.Set("X-Keep-Storage-Classes", strings.Join(classes, ", "))
	}
	res := writeResult{service: s}
	a := attempt{method: http.MethodPut, service: s, path: w.hash, header: header, body: w.body, round: r}
	res.err = w.c.do(ctx, a, func(resp *http.Response) error {
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
		if err != nil {
			return err
		}
		res.loc, err = ParseLocator(strings.TrimSpace(string(text)))
		if err != nil {
			return fmt.Errorf("reply is no locator: %w", err)
		}
		if res.loc.Hash() != w.hash || res.loc.Size() != w.body.Size() {
			return errors.New("reply names another block")
		}
		res.copies, err = strconv.Atoi(resp.Header.Get("X-Keep-Replicas-Stored"))
		if err != nil || res.copies < 0 {
			res.copies = 1
		}
		res.classes = parseConfirmed(resp.Header.Get("X-Keep-Storage-Classes-Confirmed"))
		return nil
	})
	return res
}

// parseConfirmed reads "a=1, b=2". It returns nil if that is not what it is.
func parseConfirmed(s string) map[string]int {
	classes := make(map[string]int)
	for _, part := range strings.Split(s, ",") {
		name, count, ok := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.Atoi(count)
		if !ok || name == "" || err != nil || n < 0 {
			return nil
		}
		classes[name] += n
	}
	return classes
}

// writeTemporary tells whether another PUT to the service may succeed: a full
// one (507) stays full.
func (e *ServiceError) writeTemporary() bool {
	return e.Temporary() && e.Status != http.StatusInsufficientStorage
}

func (w *blockWrite) error(attempts int) *WriteError {
	e := &WriteError{Hash: w.hash, Wanted: w.wanted, Stored: w.copies, Attempts: attempts}
	e.Classes, _ = w.missing()
	for _, url := range w.order {
		if !w.stored[url] {
			e.Services = append(e.Services, w.failed[url])
		}
	}
	return e
}
