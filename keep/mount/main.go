// Package mount shows Arvados collections as a file system: the FUSE server
// behind "crunch-run keep-mount", which takes the command line of arv-mount and
// shows the same tree (spec keep.md section 12).
//
// Collections named by portable data hash are the input side of a container:
// their content cannot change, and many processes read it. So the kernel may
// believe everything it was told for ever, files are read in large pieces and
// ahead of the reader, and a collection of 58,000 files costs an array and not an
// object per file. New collections (--mount-tmp) are the output side: file trees
// that programs change as they like, of which .arvados#collection tells the
// manifest.
//
// The server runs in a process of its own, never in the one that starts
// containers, dies with its parent, and takes its mount along: the parent gives
// it a private mount namespace and a parent-death signal. Reading a file fails
// with EIO if its blocks cannot be had, and a line on stderr says why, in words
// that the supervisor looks for.
package mount

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/giveback"
	"crunch-oci/internal/redact"
)

// ReadyFD is the environment variable with the number of an inherited
// descriptor, on which one line is written when the mount can be used.
const ReadyFD = "CRUNCH_RUN_READY_FD"

// Command is the program.
type Command struct {
	// Program and Version are what --version prints.
	Program, Version string
	// Connect makes the backend for a mount. Its context ends with the mount.
	Connect func(ctx context.Context, opts Options) (Backend, error)
}

// Main runs a command line (without the program's name) to its end and returns
// the exit status: 0 if all went well, 1 if something failed, 2 if the command
// line is wrong. A mount ends, cleanly, with ctx, which the caller ends on
// SIGINT and SIGTERM.
func (c Command) Main(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) int {
	// What users may read of it (arv-mount.txt, runtime_status) is without secrets.
	secrets := new(redact.Redactor)
	secrets.Hide(env("ARVADOS_API_TOKEN"))
	stderr = redact.Writer{To: stderr, Redactor: secrets}
	fail := func(status int, err error) int {
		fmt.Fprintf(stderr, "%s: %v\n", c.Program, err)
		return status
	}
	opts, err := ParseArgs(args)
	switch {
	case err != nil:
		return fail(2, err)
	case opts.Version:
		fmt.Fprintln(stdout, c.Program, c.Version)
		return 0
	case opts.Help:
		fmt.Fprint(stdout, Usage)
		return 0
	case opts.Unmount:
		if err := Unmount(ctx, opts.Mountpoint, opts.UnmountTimeout); err != nil {
			return fail(1, err)
		}
		return 0
	}
	ready, err := readySignal(env(ReadyFD))
	if err != nil {
		return fail(2, err)
	}
	// The heap is small and the buffers are large: collecting earlier saves
	// more memory than it costs time.
	debug.SetGCPercent(50)
	opts.Debug = opts.Debug || env("ARVADOS_DEBUG") != ""
	opts.Warn = func(text string) { (&logger{w: stderr}).warningf("%s", text) }
	b, err := c.Connect(ctx, opts)
	if err != nil {
		return fail(1, err)
	}
	if b.Idle == nil {
		b.Idle = giveback.Memory
	}
	if err := Run(ctx, opts, b, ready, stderr); err != nil {
		return fail(1, err)
	}
	return 0
}

// readySignal returns what tells the parent that the mount is there.
func readySignal(fd string) (func(), error) {
	if fd == "" {
		return func() {}, nil
	}
	n, err := strconv.Atoi(fd)
	if err != nil || n < 3 {
		return nil, fmt.Errorf("%s=%q is not the number of an inherited descriptor", ReadyFD, fd)
	}
	unix.CloseOnExec(n)
	f := os.NewFile(uintptr(n), "ready")
	if f == nil {
		return nil, fmt.Errorf("%s=%q is not the number of an inherited descriptor", ReadyFD, fd)
	}
	return func() {
		// A parent that is gone, or not interested, is no reason to stop.
		_, _ = f.WriteString("ready\n")
		_ = f.Close()
	}, nil
}
