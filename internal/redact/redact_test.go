package redact

import (
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	var r Redactor
	r.Hide("v2/zzzzz-gj3su-077z32aux8dg2s1/3kg6k6lzmp9kj5cpkcoxie963cmvjahbt2fod9zru30k1jqdmi/zzzzz-dz642-s2zuqk7ijbnfxqh",
		"gateway/secret+here", "short", "", "  5u4ydbtoken0fthe0system  ")
	sig := strings.Repeat("0123456789", 4) + "@6b16a41b"
	for _, c := range []struct{ in, want string }{
		{"nothing to hide, v2 of it, +A of course", "nothing to hide, v2 of it, +A of course"},
		{`container token "v2/zzzzz-gj3su-077z32aux8dg2s1/3kg6k6lzmp9kj5cpkcoxie963cmvjahbt2fod9zru30k1jqdmi/zzzzz-dz642-s2zuqk7ijbnfxqh"`,
			`container token "v2/zzzzz-gj3su-077z32aux8dg2s1/(hidden)/zzzzz-dz642-s2zuqk7ijbnfxqh"`},
		{"the secret alone: 3kg6k6lzmp9kj5cpkcoxie963cmvjahbt2fod9zru30k1jqdmi!", "the secret alone: (hidden)!"},
		{"unknown v2/xxxxx-gj3su-000000000000000/abc.", "unknown v2/xxxxx-gj3su-000000000000000/(hidden)"},
		{"GET /x?api_token=v2%2Fxxxxx-gj3su-000000000000000%2Fabcdef&y=1", "GET /x?api_token=v2%2Fxxxxx-gj3su-000000000000000%2F(hidden)&y=1"},
		{"gateway/secret+here gateway%2Fsecret%2Bhere", "(hidden) (hidden)"},
		{"5u4ydbtoken0fthe0system", "(hidden)"},
		{"a short answer", "a short answer"},
		{"Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer (hidden)"},
		{"Authorization:[OAuth2 abcdefghijklmnop]", "Authorization:[OAuth2 (hidden)"},
		{"Bearer v2/xxxxx-gj3su-000000000000000/abc", "Bearer v2/xxxxx-gj3su-000000000000000/(hidden)"},
		{"ARVADOS_API_TOKEN=abcdefghijklmnop HOME=/", "ARVADOS_API_TOKEN=(hidden) HOME=/"},
		{`{"api_token":"abcdefghijklmnop","x":1}`, `{"api_token":"(hidden)","x":1}`},
		{`"{\"api_token\": \"abcdefghijklmnop\"}"`, `"{\"api_token\": \"(hidden)\"}"`},
		{"GET acbd18db4cc2f85cedef654fccc4a4d8+3+A" + sig + ": 404", "GET acbd18db4cc2f85cedef654fccc4a4d8+3+A(hidden): 404"},
		{"acbd18db4cc2f85cedef654fccc4a4d8+3+Rzzzzz-" + sig + "+K@x", "acbd18db4cc2f85cedef654fccc4a4d8+3+Rzzzzz-(hidden)+K@x"},
		{"acbd18db4cc2f85cedef654fccc4a4d8+3+A123@6b16a41b", "acbd18db4cc2f85cedef654fccc4a4d8+3+A123@6b16a41b"},
	} {
		if got := r.Redact(c.in); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.in, got, c.want)
		}
	}
}

// Nothing that was to be hidden comes through, whatever surrounds it.
func FuzzRedact(f *testing.F) {
	const secret = "3kg6k6lzmp9kj5cpkcoxie963cmvjahbt2fod9zru30k1jqdmi"
	f.Add("Bearer ", "\n")
	f.Add("v2/zzzzz-gj3su-077z32aux8dg2s1/", "/x")
	f.Add("api_token=3kg6k6", secret)
	var r Redactor
	r.Hide(secret)
	f.Fuzz(func(t *testing.T, before, after string) {
		if got := r.Redact(before + secret + after); strings.Contains(got, secret) {
			t.Errorf("%q", got)
		}
	})
}
