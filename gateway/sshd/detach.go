package sshd

import (
	"bytes"
	"fmt"
	"strings"
)

// defaultKeys is the sequence that detaches if nothing else, or nothing valid, is
// asked for.
const defaultKeys = "ctrl-p,ctrl-q"

// parseKeys parses a sequence of keys, comma-separated: single characters,
// "ctrl-" and one of a-z @ [ \ ] ^ _, or DEL (gateway.md section 5.4).
func parseKeys(text string) ([]byte, error) {
	if text == "" {
		text = defaultKeys
	}
	var keys []byte
	for key := range strings.SplitSeq(text, ",") {
		c, control := strings.CutPrefix(key, "ctrl-")
		switch {
		case key == "DEL":
			keys = append(keys, 0x7f)
		case control && len(c) == 1 && c[0] >= 'a' && c[0] <= 'z':
			keys = append(keys, c[0]-'a'+1)
		case control && len(c) == 1 && strings.Contains(`@[\]^_`, c):
			keys = append(keys, c[0]-'@')
		case len(key) == 1 && key[0] < 0x80:
			keys = append(keys, key[0])
		default:
			return nil, fmt.Errorf("key %q is neither one character, nor \"ctrl-\" with one of a-z @ [ \\ ] ^ _, nor DEL", key)
		}
	}
	return keys, nil
}

// detacher looks for a sequence of keys in what is typed. Bytes that may begin it
// are held back until it is known whether they do.
type detacher struct {
	keys []byte
	held int // how many bytes of keys have been typed last, and held back
}

// filter returns what of typed is to be passed on, which is valid until the next
// call, and whether the sequence is complete; what comes after it is dropped.
func (d *detacher) filter(typed []byte) (pass []byte, detach bool) {
	if len(d.keys) == 0 {
		return typed, false
	}
	pass = make([]byte, 0, d.held+len(typed))
	for _, c := range typed {
		pass = append(pass, d.keys[:d.held]...)
		pass = append(pass, c)
		// The longest end of what was typed that begins the sequence is held back.
		// What was held back before cannot be longer than it was and one more.
		tail := pass[len(pass)-d.held-1:]
		for len(tail) > 0 && !bytes.HasPrefix(d.keys, tail) {
			tail = tail[1:]
		}
		d.held = len(tail)
		pass = pass[:len(pass)-d.held]
		if d.held == len(d.keys) {
			d.held = 0
			return pass, true
		}
	}
	return pass, false
}
