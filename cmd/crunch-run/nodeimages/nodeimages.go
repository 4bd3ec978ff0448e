// Package nodeimages is "crunch-run image list --node, inspect, prune, verify":
// the image store of this node, for its operator.
package nodeimages

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"crunch-oci/cmd/crunch-run/commandline"
	"crunch-oci/imagestore"
)

// Exit statuses. "verify" has exitFailure also for damage.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 130 // as if Ctrl-C had killed it
)

// Env is what the commands need from the program around them.
type Env struct {
	Stdout, Stderr io.Writer
	// Open opens the store; warn gets what is wrong with it.
	Open func(warn func(string)) (*imagestore.Store, error)
}

// command is one verb.
type command struct {
	name, usage string
	flags       func(fs *flag.FlagSet, c *invocation)
	run         func(ctx context.Context, c *invocation, s *imagestore.Store) (int, error)
}

// invocation is one command line.
type invocation struct {
	Env
	args  []string
	json  bool
	prune pruneFlags
	// remove of verify
	remove bool
}

var commands = []*command{list, inspect, prune, verify}

// Usage is the help for all verbs.
func Usage() string {
	var all []string
	for _, c := range commands {
		all = append(all, c.usage)
	}
	return strings.Join(all, "\n")
}

// Knows tells whether verb is one of this package's. "list" is also one for
// images on the cluster.
func Knows(verb string) bool { return find(verb) != nil }

func find(verb string) *command {
	for _, c := range commands {
		if c.name == verb {
			return c
		}
	}
	return nil
}

// Main runs a verb, which Knows has said yes to, and returns the exit status.
func Main(ctx context.Context, verb string, args []string, env Env) int {
	cmd := find(verb)
	c := &invocation{Env: env}
	fs := flag.NewFlagSet(verb, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVar(&c.json, "json", false, "")
	fs.Bool("node", true, "")
	if cmd.flags != nil {
		cmd.flags(fs, c)
	}
	status := 0
	rest, err := commandline.Parse(fs, args)
	c.args = rest
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(env.Stdout, cmd.usage)
		return 0
	case err == nil:
		status, err = c.opened(ctx, cmd)
	}
	if err == nil {
		return status
	}
	fmt.Fprintf(env.Stderr, "crunch-run image %s: %v", verb, err)
	var wrong commandline.UsageError
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintln(env.Stderr, " (try -h)")
		return exitUsage
	case ctx.Err() != nil:
		fmt.Fprintln(env.Stderr)
		return exitInterrupted
	}
	fmt.Fprintln(env.Stderr)
	return exitFailure
}

// opened runs the command with the store.
func (c *invocation) opened(ctx context.Context, cmd *command) (int, error) {
	s, err := c.Open(func(text string) { fmt.Fprintln(c.Stderr, "warning: "+text) })
	if err != nil {
		return 0, err
	}
	defer s.Close(ctx)
	return cmd.run(ctx, c, s)
}

// print writes v as JSON if that is asked for, else text.
func (c *invocation) print(v any, text string) error {
	if c.json {
		return c.printJSON(v)
	}
	_, err := io.WriteString(c.Stdout, text)
	return err
}

func (c *invocation) printJSON(v any) error {
	enc := json.NewEncoder(c.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// choose finds the images that words name: a tag, or its repository if that is
// enough, an id or the beginning of one (at least 4 digits), or the name of the
// image in the store.
func choose(all []imagestore.ImageInfo, words []string) ([]imagestore.ImageInfo, error) {
	var out []imagestore.ImageInfo
	for _, w := range words {
		var found []imagestore.ImageInfo
		for _, img := range all {
			if matches(img, w) {
				found = append(found, img)
			}
		}
		switch {
		case len(found) == 0:
			return nil, fmt.Errorf("no image in the store is called %q (see crunch-run image list --node)", w)
		case len(found) > 1 && !sameID(found):
			return nil, fmt.Errorf("%q fits %d images; give a tag, or more of the id", w, len(found))
		}
		out = append(out, found...)
	}
	return out, nil
}

func matches(img imagestore.ImageInfo, word string) bool {
	if word == img.Name || word == img.ID.String() || word == img.Promised {
		return true
	}
	for _, tag := range img.Tags {
		if i := strings.LastIndexByte(tag, ':'); word == tag || i > 0 && word == tag[:i] {
			return true
		}
	}
	prefix := strings.TrimPrefix(word, "sha256:")
	return len(prefix) >= 4 && strings.HasPrefix(img.ID.Encoded(), prefix)
}

// sameID tells whether these are one image that came under several names.
func sameID(images []imagestore.ImageInfo) bool {
	for _, img := range images {
		if img.ID != images[0].ID {
			return false
		}
	}
	return true
}
