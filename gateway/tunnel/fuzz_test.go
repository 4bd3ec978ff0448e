package tunnel

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
)

// FuzzReply reads whatever a controller may answer.
func FuzzReply(f *testing.F) {
	for _, v := range spec(f).Accepts {
		f.Add([]byte(v.Response))
	}
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\n" + ready))
	f.Fuzz(func(t *testing.T, data []byte) {
		reply, err := readReply(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		if s := printable(reply.Status); strings.ContainsAny(s, "\r\n\x1b") {
			t.Errorf("%q", s)
		}
		if s := message(data); strings.ContainsAny(s, "\r\n\x1b") {
			t.Errorf("%q", s)
		}
	})
}
