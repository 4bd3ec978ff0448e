package gateway

import (
	"container/list"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// limits bound what others can make this process hold (gateway.md sections 11
// and 14).
type limits struct {
	// header bounds the TLS handshake, and then the time a request header may
	// take; strangers get no longer for anything else either.
	header time.Duration
	// idle bounds the time between two requests on one connection.
	idle time.Duration
	// halfClosed bounds the silence of one side of an upgraded connection after
	// the other has said its last.
	halfClosed time.Duration
	// headerBytes bounds a request header, formBytes the body of a form.
	headerBytes int
	formBytes   int64
	// strangers bounds the connections that have not proved who they are. The
	// next one takes the place of the oldest: who knows the secret needs
	// milliseconds, who holds connections open to be a nuisance loses them.
	strangers int
	// shells, forwards and logReaders bound the authenticated ones.
	shells, forwards, logReaders int
	// tunnelRetry is the wait after a first failure of the tunnel.
	tunnelRetry time.Duration
}

var defaultLimits = limits{
	header:      30 * time.Second,
	idle:        60 * time.Second,
	halfClosed:  60 * time.Second,
	headerBytes: 64 << 10,
	formBytes:   64 << 10,
	strangers:   256,
	shells:      256,
	forwards:    256,
	logReaders:  128,
	tunnelRetry: 5 * time.Second,
}

// fit returns the limits for a process that may have so many open files. Half of
// them stay with the supervisor, which has a container to look after.
func (l limits) fit(files uint64) limits {
	// A forward has two connections, a log reader a file, a shell its pipes.
	need := uint64(l.strangers + 2*l.forwards + 4*l.shells + 2*l.logReaders)
	have := files / 2
	if have >= need {
		return l
	}
	for _, n := range []*int{&l.strangers, &l.forwards, &l.shells, &l.logReaders} {
		*n = max(1, int(uint64(*n)*have/need))
	}
	return l
}

// openFiles is how many the kernel lets this process have.
func openFiles() uint64 {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 1024
	}
	return r.Cur
}

// slots are a counting semaphore nobody waits for.
type slots chan struct{}

// take returns false if all slots are taken. Each true needs a free.
func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) free() { <-s }

// guests are the open connections of a server, in the order they came.
type guests struct {
	max int // strangers

	mu        sync.Mutex
	closed    bool
	strangers list.List // of *guest, oldest first
	known     map[*guest]struct{}
}

// guest is a connection. It stays on the list until it is closed.
type guest struct {
	net.Conn
	all     *guests
	element *list.Element // in all.strangers; nil if known
	gone    bool
	once    sync.Once
	err     error
}

// welcome puts c on the list. Who is known need not make room for others.
func (all *guests) welcome(c net.Conn, known bool) net.Conn {
	g := &guest{Conn: c, all: all}
	var tooMany *guest
	all.mu.Lock()
	closed := all.closed
	switch {
	case closed:
	case known:
		all.add(g)
	default:
		if all.strangers.Len() >= all.max {
			tooMany = all.strangers.Remove(all.strangers.Front()).(*guest)
			tooMany.element = nil
		}
		g.element = all.strangers.PushBack(g)
	}
	all.mu.Unlock()
	if closed {
		g.Close()
	}
	if tooMany != nil {
		tooMany.Close()
	}
	return g
}

// trust takes g off the list of strangers.
func (g *guest) trust() {
	all := g.all
	all.mu.Lock()
	defer all.mu.Unlock()
	if g.element == nil || g.gone {
		return
	}
	all.strangers.Remove(g.element)
	g.element = nil
	all.add(g)
}

// add notes a guest that is known. The caller holds the lock.
func (all *guests) add(g *guest) {
	if all.known == nil {
		all.known = map[*guest]struct{}{}
	}
	all.known[g] = struct{}{}
}

// Close closes the connection, once.
func (g *guest) Close() error {
	g.once.Do(func() {
		all := g.all
		all.mu.Lock()
		g.gone = true
		if g.element != nil {
			all.strangers.Remove(g.element)
			g.element = nil
		}
		delete(all.known, g)
		all.mu.Unlock()
		g.err = g.Conn.Close()
	})
	return g.err
}

// sendAway closes every connection, also those still to come.
func (all *guests) sendAway() {
	all.mu.Lock()
	all.closed = true
	var open []*guest
	for e := all.strangers.Front(); e != nil; e = e.Next() {
		open = append(open, e.Value.(*guest))
	}
	for g := range all.known {
		open = append(open, g)
	}
	all.mu.Unlock()
	for _, g := range open {
		g.Close()
	}
}

// guestListener puts what it accepts on the list.
type guestListener struct {
	net.Listener
	all   *guests
	known bool // only the controller gets here
}

func (l guestListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.all.welcome(c, l.known), nil
}
