package tunnel

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// net/http interrupts a read with a deadline before it gives a connection away.
// TLS takes any error that is not temporary for the connection's last.
func TestReadDeadline(t *testing.T) {
	sessions := make(chan *yamux.Session, 1)
	c := newController(t, func(_ int, c net.Conn, _ string) {
		if s, err := serveYamux(c); err == nil {
			sessions <- s
			<-s.CloseChan()
		}
	})
	r := run(t, c, nil)
	far, err := await(t, sessions).Open()
	if err != nil {
		t.Fatal(err)
	}
	near := await(t, r.conns)
	defer near.Close()
	if err := near.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	//lint:ignore SA1019 crypto/tls asks for Temporary
	if _, err := near.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() || !timeout.Temporary() {
		t.Errorf("%v is not temporary", err)
	}
	if err := near.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := near.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("after the deadline: %d %v", n, err)
	}
}
