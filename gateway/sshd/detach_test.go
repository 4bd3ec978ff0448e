package sshd

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"testing"
)

func TestKeyVectors(t *testing.T) {
	b, err := os.ReadFile("../../testdata/spec/gateway.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Keys []struct {
			Keys    string `json:"detach_keys"`
			Hex     string `json:"bytes_hex"`
			Invalid bool
		} `json:"detach_keys"`
	}
	if err := json.Unmarshal(b, &all); err != nil || len(all.Keys) == 0 {
		t.Fatal(err)
	}
	for _, v := range all.Keys {
		got, err := parseKeys(v.Keys)
		if (err != nil) != v.Invalid || hex.EncodeToString(got) != v.Hex {
			t.Errorf("%q: %x, %v", v.Keys, got, err)
		}
	}
}

func TestDetacher(t *testing.T) {
	for _, tc := range []struct {
		keys, typed, pass string
		detach            bool
	}{
		{"ab", "ab", "", true},
		{"ab", "aab", "a", true},
		{"aab", "aaab", "a", true},
		{"aba", "ababa", "", true},
		{"abc", "ababd", "ababd", false},
		{"ab", "xaxb", "xaxb", false},
		{"ab", "xa", "x", false},
		{"a", "xay", "x", true},
	} {
		for _, size := range []int{1, 2, len(tc.typed)} {
			d := &detacher{keys: []byte(tc.keys)}
			var pass []byte
			detach := false
			for piece := range slices.Chunk([]byte(tc.typed), size) {
				if detach {
					break
				}
				var p []byte
				p, detach = d.filter(piece)
				pass = append(pass, p...)
			}
			if string(pass) != tc.pass || detach != tc.detach {
				t.Errorf("keys %q, typed %q in pieces of %d: %q, %v; want %q, %v", tc.keys, tc.typed, size, pass, detach, tc.pass, tc.detach)
			}
		}
	}
}

// What is passed on and held back is what was typed, and the sequence is found
// where it first occurs.
func FuzzDetacher(f *testing.F) {
	f.Add([]byte("\x10\x11"), []byte("x\x10\x10\x11y"), 1)
	f.Add([]byte("aab"), []byte("aaaab"), 2)
	f.Fuzz(func(t *testing.T, keys, typed []byte, size int) {
		if len(keys) == 0 || len(keys) > 100 || size < 1 {
			return
		}
		d := &detacher{keys: keys}
		var pass []byte
		detach := false
		for piece := range slices.Chunk(typed, size) {
			var p []byte
			if p, detach = d.filter(piece); detach {
				pass = append(pass, p...)
				break
			}
			pass = append(pass, p...)
		}
		at := bytes.Index(typed, keys)
		if detach != (at >= 0) {
			t.Fatalf("detached: %v, sequence at %d", detach, at)
		}
		if detach && !bytes.Equal(pass, typed[:at]) || !detach && !bytes.Equal(append(pass, keys[:d.held]...), typed) {
			t.Fatalf("%q of %q", pass, typed)
		}
	})
}
