package sshd

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func FuzzSplit(f *testing.F) {
	for _, s := range []string{"", "echo 'a b' \"c\\\"d\" e\\ f # g", `"`, `\`, "a#b\n#", "'\\'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, command string) {
		words, err := Split(command)
		if err != nil && err != errOpenQuote && err != errEscapeEnd {
			t.Fatal(err)
		}
		// Quoted, the words come out as they are.
		var quoted strings.Builder
		for _, w := range words {
			quoted.WriteString("'" + strings.ReplaceAll(w, "'", `'\''`) + "' ")
		}
		again, err := Split(quoted.String())
		if err != nil || strings.Join(again, "\x00") != strings.Join(words, "\x00") || len(again) != len(words) {
			t.Fatalf("%q became %q, %v", words, again, err)
		}
	})
}

func FuzzPayloads(f *testing.F) {
	f.Add(ssh.Marshal(terminalRequest{Term: "xterm", Columns: 80, Rows: 24}))
	f.Add(ssh.Marshal(struct{ A, B string }{"LC_ALL", "C"}))
	f.Add(ssh.Marshal(struct{ A string }{"TERM"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if term, _, err := parseTerminal(b); err == nil && strings.ContainsAny(term, "\x00\n/ ") {
			t.Errorf("terminal type %q", term)
		}
		if name, value, err := parseEnv(b); err == nil && (strings.ContainsAny(name+value, "\x00\n") || strings.ContainsAny(name, "=/")) {
			t.Errorf("%q=%q", name, value)
		}
		_, _ = parseSize(b)
		_, _ = parseSignal(b)
		_, _ = parseCommand(b)
	})
}
