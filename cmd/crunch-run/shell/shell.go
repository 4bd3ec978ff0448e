// Package shell is "crunch-run shell": a command in a running container of this
// node, for root, at a terminal or in a pipe.
package shell

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"crunch-oci/gateway/console"
)

const usage = `Usage: crunch-run shell [OPTIONS] UUID [--] [COMMAND [ARG...]]

Runs a command, or a login shell, in a container that runs on this node, as
"docker exec -it" does: in its namespaces, cgroup and environment, with no more
rights than it has. Needs root, and neither network nor token. The exit status
is the command's; 255 if there is none.

Options:
  --user NAME         account in the container: NAME, UID, NAME:GROUP or UID:GID
                      (default root)
  --tty, --no-tty     with or without a terminal (default: with one if standard
                      input and output are terminals)
  --detach-keys KEYS  leave the command running and return, at a terminal
                      (default ctrl-p,ctrl-q)
`

// Exit codes of our own: ssh(1)'s, and that of a wrong command line.
const (
	exitFailure = 255
	exitUsage   = 2
)

// Env is where the program runs.
type Env struct {
	Stdin, Stdout *os.File
	Stderr        io.Writer
	RuntimeDir    string // of the node
	// ValidUUID tells container UUIDs from anything else.
	ValidUUID func(string) bool
}

// Main runs the command line and returns the exit code.
func Main(args []string, e Env) int {
	fs := flag.NewFlagSet("crunch-run shell", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	user := fs.String("user", "", "")
	tty, noTTY := fs.Bool("tty", false, ""), fs.Bool("no-tty", false, "")
	keys := fs.String("detach-keys", "", "")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(e.Stdout, usage)
		return 0
	case err != nil:
		return fail(e, exitUsage, "%v (try -h)", err)
	case *tty && *noTTY:
		return fail(e, exitUsage, "--tty and --no-tty exclude each other")
	case fs.NArg() == 0:
		return fail(e, exitUsage, "which container? Those on this node: %s (try -h)", e.here())
	}
	uuid, command := fs.Arg(0), fs.Args()[1:]
	if len(command) > 0 && command[0] == "--" { // as other sub-commands want it
		command = command[1:]
	}
	if !e.ValidUUID(uuid) {
		return fail(e, exitUsage, "%q is not the UUID of a container (xxxxx-dz642-xxxxxxxxxxxxxxx)", uuid)
	}
	if os.Geteuid() != 0 {
		return fail(e, exitFailure, "must be run as root")
	}
	conn, err := console.Dial(context.Background(), filepath.Join(e.RuntimeDir, uuid), console.Hello{LoginUser: *user, DetachKeys: *keys})
	if errors.Is(err, console.ErrNoRun) {
		return fail(e, exitFailure, "%s: %v (looked in %s); those on it: %s", uuid, err, e.RuntimeDir, e.here())
	}
	if err != nil {
		return fail(e, exitFailure, "%s: %v", uuid, err)
	}
	defer conn.Close()
	// Only root can have made the socket, or be behind it: there is nobody else
	// to be told apart.
	c, channels, requests, err := ssh.NewClientConn(conn, uuid, &ssh.ClientConfig{User: "root", HostKeyCallback: ssh.InsecureIgnoreHostKey()}) //nolint:gosec // see above
	if err != nil {
		return fail(e, exitFailure, "%s: the supervisor does not answer: %v", uuid, err)
	}
	client := ssh.NewClient(c, channels, requests)
	defer client.Close()
	s, err := client.NewSession()
	if err != nil {
		return fail(e, exitFailure, "%s: %v", uuid, err)
	}
	defer s.Close()
	code, err := e.session(s, Quote(command), terminalWanted(e, *tty, *noTTY))
	if err != nil {
		return fail(e, exitFailure, "%s: %v", uuid, err)
	}
	return code
}

func fail(e Env, code int, format string, args ...any) int {
	fmt.Fprintf(e.Stderr, "crunch-run shell: "+format+"\n", args...)
	return code
}

// here lists the containers that have a runtime directory on this node.
func (e Env) here() string {
	entries, err := os.ReadDir(e.RuntimeDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err.Error()
	}
	var found []string
	for _, d := range entries {
		if e.ValidUUID(d.Name()) {
			found = append(found, d.Name())
		}
	}
	if found == nil {
		return "none"
	}
	slices.Sort(found)
	return strings.Join(found, ", ")
}

// Quote makes one string of a command that the SSH server splits into the same
// words again (gateway.md section 5.3).
func Quote(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}
