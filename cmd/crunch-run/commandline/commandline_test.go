package commandline

import (
	"errors"
	"flag"
	"io"
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args, rest []string
		json       bool
		name       string
		bad        bool
	}{
		{args: nil},
		{args: []string{"-json", "a", "b"}, rest: []string{"a", "b"}, json: true},
		{args: []string{"a", "--name", "x", "b", "--json"}, rest: []string{"a", "b"}, json: true, name: "x"},
		{args: []string{"a", "--", "--json", "b"}, rest: []string{"a", "--json", "b"}},
		{args: []string{"--", "a", "--", "b"}, rest: []string{"a", "--", "b"}},
		{args: []string{"--name", "--", "a", "-json"}, rest: []string{"a"}, name: "--", json: true, bad: false},
		{args: []string{"a", "--nonsense"}, bad: true},
		{args: []string{"a", "--json=perhaps"}, bad: true},
	} {
		fs := flag.NewFlagSet("x", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		json, name := fs.Bool("json", false, ""), fs.String("name", "", "")
		rest, err := Parse(fs, c.args)
		var wrong UsageError
		if errors.As(err, &wrong) != c.bad || (err != nil) != c.bad {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		if !c.bad && (!slices.Equal(rest, c.rest) || *json != c.json || *name != c.name) {
			t.Errorf("%q: %q, json %v, name %q", c.args, rest, *json, *name)
		}
	}
	fs := flag.NewFlagSet("x", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	var wrong UsageError
	if _, err := Parse(fs, []string{"a", "-h"}); !errors.Is(err, flag.ErrHelp) || errors.As(err, &wrong) {
		t.Error(err)
	}
}
