package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/cgroups"
	"crunch-oci/internal/idmap"
	"crunch-oci/oci/internal/libct"
)

// ExecRequest is a command to be run in a container beside its first process.
type ExecRequest struct {
	// Args are the program, looked up in the container with its PATH, and its
	// arguments. None: a login shell, which is /bin/bash, or without it that of
	// the account, or /bin/sh.
	Args []string
	// Env is set on top of the container's environment, "NAME=value" each.
	Env []string
	// User is "name", "uid", "name:group" or "uid:gid", looked up in the
	// container's own files; "" is root.
	User string
	// Terminal, if not nil, gives the command a controlling terminal.
	Terminal *TerminalSize
}

// TerminalSize is the size of a terminal in characters and in pixels; 0 means
// that it is not known.
type TerminalSize struct{ Columns, Rows, Width, Height uint16 }

// ExecError says that a command was not started for a reason that lies in the
// command, the account or the container.
type ExecError struct {
	// Code is the exit code that stands for it: 127 if the program was not
	// found, 126 if it cannot be executed, otherwise 1.
	Code int
	// Text is one line for the user.
	Text string
}

func (e *ExecError) Error() string { return e.Text }

// errNotStarted and errEnded refuse commands by the container's state.
var (
	errNotStarted = &ExecError{1, "the container has not been started yet"}
	errEnded      = &ExecError{1, "the container has ended"}
)

// runningContainer is what must be known of a container to run commands in it and
// to connect to its network. Its methods may be called from several goroutines.
type runningContainer struct {
	stateDir, id string
	pid          int // of the first process
	cgroup       *cgroups.Cgroup
	ids          idmap.Range // of its user namespace
	// alive returns nil as long as the first process has not been reaped. Until
	// then no other process can have its number.
	alive func() error
	// accounts is a semaphore of one: the container's owner can make its account
	// files large, and slow to read.
	accounts chan struct{}
	// starts is a semaphore of maxStarts: a command that is being started takes the
	// memory of runc's init and, on kernels before 5.2, of a copy of this program.
	starts chan struct{}
}

// maxStarts is how many commands may be started at the same time.
const maxStarts = 8

func newRunningContainer(c *Container, stateDir string) *runningContainer {
	return &runningContainer{
		stateDir: stateDir, id: c.id, pid: c.pid, cgroup: c.cgroup, ids: c.ids,
		alive:    func() error { return c.ctr.Signal(0) },
		accounts: make(chan struct{}, 1), starts: make(chan struct{}, maxStarts),
	}
}

// refuse returns an *ExecError if no command can run in the container now.
func refuse(guest *libct.Guest) error {
	switch s, err := guest.Status(); {
	case err != nil:
		return err
	case s == libct.Waiting:
		return errNotStarted
	case s == libct.Ended:
		return errEnded
	}
	return nil
}

// Exec starts a command in the container: in its namespaces and cgroup, with its
// system call filter and limits, and with no more privileges than its first
// process could have. It returns when the command runs; the error is an
// *ExecError if the reason lies in the command, the account or the container.
//
// ctx bounds the start only. What has been started ends by itself, by
// Session.Kill, or with the container, whose end and exit status it does not
// affect. The caller must call Session.Close in the end.
func (c *Container) Exec(ctx context.Context, q ExecRequest) (*Session, error) {
	if c.running == nil {
		return nil, errEnded // the command was not executable: nothing ever ran
	}
	return c.running.exec(ctx, q)
}

func (r *runningContainer) exec(ctx context.Context, q ExecRequest) (*Session, error) {
	p, shells, err := r.prepareExec(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(q.Args) > 0 {
		p.Args = q.Args
		return r.enter(ctx, p, q.Terminal)
	}
	for i, shell := range shells {
		p.Args = shell
		s, err := r.enter(ctx, p, q.Terminal)
		var refused *ExecError
		missing := errors.As(err, &refused) && refused.Code > 1
		if !missing || i == len(shells)-1 {
			return s, err
		}
	}
	return nil, &ExecError{127, "there is no shell in the container"}
}

// prepareExec returns the process of a command, without its arguments, and the
// login shells to try if it is to be one.
func (r *runningContainer) prepareExec(ctx context.Context, q ExecRequest) (p *specs.Process, shells [][]string, err error) {
	if err := q.check(); err != nil {
		return nil, nil, err
	}
	record, err := readProcessRecord(filepath.Join(r.stateDir, r.id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errEnded
	}
	if err != nil {
		return nil, nil, err
	}
	who, err := r.account(ctx, q.User)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range append([]uint32{who.uid, who.gid}, who.groups...) {
		if _, ok := r.ids.Host(id); !ok {
			return nil, nil, &ExecError{1, fmt.Sprintf("id %d is not among the %d that the container has", id, r.ids.Count)}
		}
	}
	p = record.Process
	if err := Apply(&specs.Spec{Process: p}, withUser(who)); err != nil {
		return nil, nil, err
	}
	if c := p.Capabilities; c != nil {
		// As withCapabilities: what the first process may have at most is its
		// bounding set, and root has it.
		c.Effective, c.Permitted, c.Inheritable, c.Ambient = nil, nil, nil, nil
		if who.uid == 0 {
			c.Effective, c.Permitted = c.Bounding, c.Bounding
		}
	}
	p.Env = record.environment(who, q.Env)
	p.Terminal, p.ConsoleSize = q.Terminal != nil, nil
	if t := q.Terminal; t != nil && t.Columns > 0 && t.Rows > 0 {
		p.ConsoleSize = &specs.Box{Width: uint(t.Columns), Height: uint(t.Rows)}
	}
	return p, loginShells(who), nil
}

// check refuses what execve(2) could not be given.
func (q ExecRequest) check() error {
	for _, s := range slices.Concat(q.Args, q.Env, []string{q.User}) {
		if strings.IndexByte(s, 0) >= 0 {
			return &ExecError{1, "the command, its environment or its account contains a NUL byte"}
		}
	}
	for _, kv := range q.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			return &ExecError{1, fmt.Sprintf("environment variable %q is not valid", kv)}
		}
	}
	return nil
}

// loginShells are the command lines of ExecRequest without arguments, to be tried
// in this order.
func loginShells(who identity) [][]string {
	shells := [][]string{{"/bin/bash", "-login"}}
	if who.shell != "" {
		shells = append(shells, []string{who.shell, "-l"})
	}
	return append(shells, []string{"/bin/sh", "-l"})
}

// processRecordFile is the name of a processRecord in the container's state
// directory.
const processRecordFile = "process.json"

// processRecord is what further commands have in common with the container's first
// process. libcontainer's own record lacks environment and working directory.
type processRecord struct {
	Process *specs.Process
	// HomeAdded says that HOME is the account's and was not asked for.
	HomeAdded bool
}

// environment returns that of a further command: the first process's, the HOME of
// who runs it, and above these the variables of set.
func (p processRecord) environment(who identity, set []string) []string {
	env := newEnviron()
	add := func(variables []string) {
		for _, kv := range variables {
			name, value, _ := strings.Cut(kv, "=")
			env.set(name, value)
		}
	}
	add(p.Process.Env)
	if p.HomeAdded {
		env.set("HOME", who.home)
	}
	add(set)
	return env.list()
}

func writeProcessRecord(dir string, spec *specs.Spec) error {
	p := *spec.Process
	p.Args = nil
	b, err := json.Marshal(processRecord{Process: &p, HomeAdded: spec.Annotations[homeAdded] != ""})
	if err != nil {
		return err
	}
	// The environment may hold tokens.
	return writeFile(filepath.Join(dir, processRecordFile), b, 0o600)
}

func readProcessRecord(dir string) (processRecord, error) {
	var p processRecord
	b, err := os.ReadFile(filepath.Join(dir, processRecordFile))
	if err != nil {
		return p, fmt.Errorf("read the container's state: %w", err)
	}
	if err := json.Unmarshal(b, &p); err != nil || p.Process == nil {
		return p, fmt.Errorf("read the container's state: %s is damaged: %w", processRecordFile, err)
	}
	return p, nil
}
