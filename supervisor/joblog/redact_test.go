package joblog

import (
	"bytes"
	"strings"
	"testing"
)

// The output of helpers may hold secrets, also in pieces; not one byte else is
// changed or lost.
func TestStreamRedacts(t *testing.T) {
	const secret = "3kg6k6lzmp9kj5cpkcoxie963cmvjahbt2fod9zru30k1jqdmi"
	text := "a line\n\nAuthorization: Bearer " + secret + "\nbinary \x00\xff\r\nand no end: " + secret
	want := strings.ReplaceAll(text, secret, "(hidden)")
	for size := range 20 {
		l, tree, _, _ := newTestLog(t, Config{})
		l.Hide(secret)
		var mirror bytes.Buffer
		s, err := l.Stream("helper.txt", StreamOptions{Redact: true, Mirror: &mirror})
		if err != nil {
			t.Fatal(err)
		}
		for rest := []byte(text); len(rest) > 0; {
			n := min(size+1, len(rest))
			if m, err := s.Write(rest[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if got := tree.file("helper.txt"); got != want || mirror.String() != want {
			t.Errorf("pieces of %d: %q, mirror %q", size+1, got, mirror.String())
		}
	}
}
