// Package client is the roles of the program for people without other clients:
// "crunch-run image", "submit", "request" and "collection", and, for operators,
// "unfinished". They work with any cluster that the environment names, as its
// user.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"crunch-oci/cmd/crunch-run/commandline"
	"crunch-oci/cmd/crunch-run/transfer"
	"crunch-oci/supervisor/unfinished"
)

// Exit statuses. "submit --wait" has those of the command.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNoStatus    = 125 // submit --wait: the container has no exit code
	exitInterrupted = 130 // as if Ctrl-C had killed it
)

// Env is what the roles need from the program around them.
type Env struct {
	Stdout, Stderr io.Writer
	// TempDir is for temporary files without a name.
	TempDir string
	// Connect opens the cluster of the environment.
	Connect func(ctx context.Context) (*transfer.Session, error)
	// Unfinished finds the node's directory of unfinished results.
	Unfinished func() (unfinished.Dir, error)
}

// command is one role, or one verb of a role.
type command struct {
	name  string // as typed: "image put"
	usage string
	run   func(ctx context.Context, c *invocation) (int, error)
	flags func(fs *flag.FlagSet, c *invocation)
}

// invocation is one command line, with what the command's flags say.
type invocation struct {
	Env
	name    string
	args    []string
	json    bool
	names   list
	project string
	force   bool
	all     bool
	name1   string // --name of a record
	submit  submission
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

var commands = []*command{imagePut, imageList, submit, requestShow, requestCancel, collectionPut, collectionGet, collectionList, unfinishedList, unfinishedDeliver, unfinishedDrop}

// Main runs a role and returns the exit status. args begin with the role.
func Main(ctx context.Context, args []string, env Env) int {
	cmd, rest, status := find(args, env)
	if cmd == nil {
		return status
	}
	c := &invocation{Env: env, name: cmd.name}
	fs := flag.NewFlagSet(cmd.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVar(&c.json, "json", false, "")
	if cmd.flags != nil {
		cmd.flags(fs, c)
	}
	err := c.parse(fs, rest)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(env.Stdout, cmd.usage)
		return 0
	case err == nil:
		status, err = cmd.run(ctx, c)
	}
	if err == nil {
		return status
	}
	var wrong commandline.UsageError
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintf(env.Stderr, "crunch-run %s: %s (try -h)\n", cmd.name, plain(err.Error()))
		return exitUsage
	case ctx.Err() != nil:
		fmt.Fprintf(env.Stderr, "crunch-run %s: %v\n", cmd.name, context.Cause(ctx))
		return exitInterrupted
	}
	fmt.Fprintf(env.Stderr, "crunch-run %s: %s\n", cmd.name, explain(err))
	if status == 0 {
		status = exitFailure
	}
	return status
}

// find finds the command, or prints what there is.
func find(args []string, env Env) (*command, []string, int) {
	role, verb := args[0], ""
	if len(args) > 1 {
		verb = args[1]
	}
	var verbs, usages []string
	for _, cmd := range commands {
		r, v, _ := strings.Cut(cmd.name, " ")
		switch {
		case r != role:
		case v == "":
			return cmd, args[1:], 0
		case v == verb:
			return cmd, args[2:], 0
		default:
			verbs, usages = append(verbs, v), append(usages, cmd.usage)
		}
	}
	if slices.Contains([]string{"-h", "-help", "--help", "help"}, verb) {
		fmt.Fprint(env.Stdout, strings.Join(usages, "\n"))
		return nil, nil, 0
	}
	fmt.Fprintf(env.Stderr, "crunch-run %s: what shall be done? One of: %s (try -h)\n", role, strings.Join(verbs, ", "))
	return nil, nil, exitUsage
}

// parse takes flags also after other arguments, but for submit, whose command
// has flags of its own.
func (c *invocation) parse(fs *flag.FlagSet, args []string) (err error) {
	if c.name != submit.name {
		c.args, err = commandline.Parse(fs, args)
		return err
	}
	if err := fs.Parse(args); err != nil && !errors.Is(err, flag.ErrHelp) {
		return commandline.Misuse("%w", err)
	} else if err != nil {
		return err
	}
	c.args = fs.Args()
	return nil
}

// print writes v as JSON if that is asked for, else text.
func (c *invocation) print(v any, text string) error {
	if c.json {
		enc := json.NewEncoder(c.Stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	_, err := io.WriteString(c.Stdout, text)
	return err
}

// connected runs fn with the cluster.
func (c *invocation) connected(ctx context.Context, fn func(s *transfer.Session) error) (err error) {
	// What cannot be reached is tried for a while: nobody should have to guess
	// why nothing happens.
	said := make(chan struct{})
	silence := time.AfterFunc(5*time.Second, func() {
		defer close(said)
		fmt.Fprintf(c.Stderr, "crunch-run %s: no answer from the cluster yet; still trying\n", c.name)
	})
	s, err := c.Connect(ctx)
	if !silence.Stop() {
		<-said
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return fn(s)
}
