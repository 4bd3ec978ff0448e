package keepstore

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// LimitConnections has server close the connection that has been idle for
// longest when there would be more than most of them, or the new one if all are
// at work: containers reach this server too, and one that opens connections
// without end must not take the memory and descriptors of everybody else.
func LimitConnections(server *http.Server, most int) {
	l := &connections{most: most, all: make(map[net.Conn]*list.Element)}
	next := server.ConnState
	server.ConnState = func(c net.Conn, state http.ConnState) {
		l.changed(c, state)
		if next != nil {
			next(c, state)
		}
	}
}

// connections knows those that are open. Idle are those without a request, also
// those that have not sent one yet.
type connections struct {
	most int

	mu   sync.Mutex
	all  map[net.Conn]*list.Element // nil: at work
	idle list.List                  // of net.Conn, longest first
}

func (l *connections) changed(c net.Conn, state http.ConnState) {
	if victim := l.note(c, state); victim != nil {
		victim.Close() // the server notices
	}
}

// note returns the connection to be closed, if any.
func (l *connections) note(c net.Conn, state http.ConnState) (victim net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.all[c]; e != nil {
		l.idle.Remove(e)
	}
	switch state {
	case http.StateNew:
		if len(l.all) >= l.most {
			victim = c
			if first := l.idle.Front(); first != nil {
				victim = l.idle.Remove(first).(net.Conn)
				delete(l.all, victim)
			}
			if victim == c {
				return victim
			}
		}
		l.all[c] = l.idle.PushBack(c)
	case http.StateIdle:
		if _, ok := l.all[c]; ok {
			l.all[c] = l.idle.PushBack(c)
		}
	case http.StateActive:
		if _, ok := l.all[c]; ok {
			l.all[c] = nil
		}
	default: // closed or hijacked
		delete(l.all, c)
	}
	return victim
}
