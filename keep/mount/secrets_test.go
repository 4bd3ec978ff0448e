package mount

import (
	"bytes"
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
)

// Secrets that other programs put into their messages stay out of ours, which
// the container's owner can read.
func TestStderrWithoutSecrets(t *testing.T) {
	// An old token has no shape by which it could be known.
	const v1 = "3kg6k6lzmp9kj5cpkcoxie963cmvjahbt2fod9zru30k1jqdmi"
	signed := "acbd18db4cc2f85cedef654fccc4a4d8+3+A" + strings.Repeat("0123456789", 4) + "@6b16a41b"
	trouble := "no answer to " + token + " for " + signed + " by " + v1
	check := func(t *testing.T, said, want string) {
		t.Helper()
		if !strings.Contains(said, want) {
			t.Errorf("stderr %q, want %q", said, want)
		}
		for _, secret := range []string{strings.Split(token, "/")[2], "0123456789012345", v1} {
			if strings.Contains(said, secret) {
				t.Errorf("%q in stderr %q", secret, said)
			}
		}
	}
	t.Run("start", func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		c := Command{Program: "p", Connect: func(context.Context, Options) (Backend, error) { return Backend{}, errors.New(trouble) }}
		env := func(name string) string { return map[string]string{"ARVADOS_API_TOKEN": v1}[name] }
		if code := c.Main(t.Context(), []string{"--foreground", "--mount-by-pdh", "x", "/m"}, env, &stdout, &stderr); code != 1 {
			t.Errorf("status %d", code)
		}
		check(t, stderr.String(), "p: no answer to v2/zzzzz-gj3su-aey2u9zwnz5ggdk/(hidden) for acbd18db4cc2f85cedef654fccc4a4d8+3+A(hidden) by (hidden)\n")
	})
	t.Run("mount", func(t *testing.T) {
		const pdh = "acbd18db4cc2f85cedef654fccc4a4d8+53"
		w := newWorld(t)
		w.answerText(pdh, trouble)
		w.mountEnv([]string{"ARVADOS_API_TOKEN=" + v1})
		if _, err := os.Stat(w.path("by_id", pdh)); err == nil {
			t.Error("the collection is there")
		}
		w.waitLog(regexp.MustCompile("cannot be shown.*\n"))
		check(t, w.stderr.String(), "collection "+pdh+" cannot be shown: ")
	})
}
