package arvados

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestErrorSaysWhatWhereAndWhy(t *testing.T) {
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(422)
		fmt.Fprintf(w, `{"errors":["Cost cannot be modified in state 'Queued' (0.0, 0.0421) (%s)","second text"],"error_token":"1772600767+0a1b2c3d"}`, r.Header.Get("X-Request-Id"))
	})
	err := fmt.Errorf("final update: %w", c.UpdateContainer(context.Background(), "zzzzz-dz642-000000000000001", map[string]any{"cost": 1}))
	var e *Error
	if !errors.As(err, &e) || e.Status != 422 || len(e.Texts) != 2 || e.Method != "PUT" || e.Attempts != 1 {
		t.Fatalf("%#v", e)
	}
	want := "final update: PUT /arvados/v1/containers/zzzzz-dz642-000000000000001: 422 Unprocessable Entity: " +
		"Cost cannot be modified in state 'Queued' (0.0, 0.0421) (" + e.RequestID + "); second text"
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	if !IsStatus(err, 404, 422) || IsStatus(err, 404) || IsStatus(nil, 0) || IsStatus(errors.New("x"), 0) {
		t.Error("IsStatus")
	}
}

func TestErrorAnswers(t *testing.T) {
	// Every error answer of the specification is understood.
	var answers map[string]map[string]any
	vectors(t, &answers, "records", "errors")
	for name, answer := range answers {
		body, _ := encodeJSON(answer)
		texts := errorTexts([]byte(body), nil)
		if wants := answer["errors"].([]any); len(texts) != len(wants) || texts[0] != wants[0] {
			t.Errorf("%s: %q", name, texts)
		}
	}
	for body, want := range map[string]string{
		"":                                "",
		"  \n ":                           "",
		"<html>\n <h1>Bad\tGateway</h1>":  "<html> <h1>Bad Gateway</h1>",
		`{"errors":[]}`:                   `{"errors":[]}`,
		`{"errors":"text"}`:               `{"errors":"text"}`,
		`{"errors":[{"detail":"x"},7]}`:   "map[detail:x];7",
		"\xff\xfe":                        "?",
		strings.Repeat("é", maxErrorPage): strings.Repeat("é", maxErrorPage/2) + "...",
	} {
		if got := strings.Join(errorTexts([]byte(body), nil), ";"); got != want {
			t.Errorf("%q: %q, want %q", body, got, want)
		}
	}
}

// A server, or a proxy, that quotes the request must not put secrets into the
// log.
func TestNoSecretsInErrors(t *testing.T) {
	const secret = "3kg6k6lzmp9kj5cpkcoxie963cmvjahbt2fod9zru30k1jqdmi"
	const other = "otherotherotherotherother"
	signature := "A0123456789abcdef0123456789abcdef01234567"
	quoted := "token " + dispatcherToken + " or " + secret + " or v2/zzzzz-gj3su-111111111111111/" + other + "/zzzzz-dz642-000000000000001" +
		" block acbd18db4cc2f85cedef654fccc4a4d8+3+" + signature + "@6a0c3f80 remote acbd18db4cc2f85cedef654fccc4a4d8+3+Rzzzzz-0123456789abcdef0123456789abcdef01234567@6a0c3f80."
	for _, format := range []string{`{"errors":[%q]}`, `%s`} {
		c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			fmt.Fprintf(w, format, quoted)
		})
		err := c.Call(context.Background(), "GET", "x", nil, nil)
		var e *Error
		if !errors.As(err, &e) {
			t.Fatal(err)
		}
		for _, text := range []string{err.Error(), strings.Join(e.Texts, " "), fmt.Sprintf("%v %+v %#v", c, c, c)} {
			for _, s := range []string{secret, other, "0123456789abcdef0123456789abcdef01234567"} {
				if strings.Contains(text, s) {
					t.Errorf("%q in %q", s, text)
				}
			}
		}
		if !strings.Contains(err.Error(), "v2/zzzzz-gj3su-111111111111111/[redacted]") || !strings.Contains(err.Error(), "+3+A[redacted]") {
			t.Errorf("too much is gone: %v", err)
		}
	}
	// The same for a token that is a secret alone.
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "bad token "+secret, http.StatusUnauthorized)
	},
		func(cfg *Config) { cfg.Token = secret })
	if err := c.Call(context.Background(), "GET", "x", nil, nil); err == nil || strings.Contains(err.Error(), secret) {
		t.Error(err)
	}
	if err := c.WithToken(secret+"\r\nX: y").Call(context.Background(), "GET", "x", nil, nil); err == nil || strings.Contains(err.Error(), secret) {
		t.Error(err)
	}
	c, _, _ = newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "bad "+r.Header.Get("Authorization"), http.StatusUnauthorized)
	})
	if err := c.WithToken(other).Call(context.Background(), "GET", "x", nil, nil); err == nil || strings.Contains(err.Error(), other) {
		t.Error(err)
	}
	auth := APIClientAuthorization{UUID: "u", APIToken: secret}
	if s := fmt.Sprintf("%v %+v %#v %s", auth, auth, &auth, Config{Token: secret}); strings.Contains(s, secret) {
		t.Error(s)
	}
}
