package oci

import (
	"fmt"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// StartError says that a container was ready but its command could not be
// executed.
type StartError struct {
	// Command is the first word of the command.
	Command string
	// Reason is why, such as `exec: "x": executable file not found in $PATH`
	// or `exec /x: no such file or directory`, which with an existing file
	// means that its interpreter is missing.
	Reason string
}

func (e *StartError) Error() string {
	if strings.HasSuffix(e.Reason, "exec format error") {
		// execve(2) has no more to say, and who reads it asks what it means.
		return fmt.Sprintf("%s (neither a program for this machine, %s, nor a script that begins with #!)", e.Reason, runtime.GOARCH)
	}
	return e.Reason
}

// ExitCode returns what a shell would: 127 if the command was not found, 126
// if it cannot be executed.
func (e *StartError) ExitCode() int {
	for _, notFound := range []string{"no such file or directory", "executable file not found in $PATH"} {
		if strings.HasSuffix(e.Reason, notFound) {
			return 127
		}
	}
	return 126
}

// Advice returns what to tell the user; see StartAdvice.
func (e *StartError) Advice() string { return StartAdvice(e.Reason, e.Command) }

var adviceNeeded = regexp.MustCompile(`(?s)(exec|System error).*(no such file or directory|file not found)`)

// tooLongAdvice is what execve(2) says of its limits.
const tooLongAdvice = "Possible cause: the arguments and the environment of a program may take 2 MB together, and 128 KiB each of them. Put what is larger into files."

// StartAdvice returns the advice that belongs to a start error's text, or ""
// (lifecycle.md section 11).
func StartAdvice(text, command string) string {
	if strings.Contains(text, "argument list too long") {
		return tooLongAdvice
	}
	if !adviceNeeded.MatchString(text) {
		return ""
	}
	return fmt.Sprintf("Possible causes: command %q is missing, the interpreter given in #! is missing, or script has Windows line endings.", command)
}

// mkdirFailed finds a working directory that cannot be made because of its name, or
// of what the image or a mount has at its place; not because the disk is full.
var mkdirFailed = regexp.MustCompile(`(?s)mkdir (/.*): (not a directory|file exists|file name too long|too many levels of symbolic links|no such file or directory|read-only file system|permission denied|operation not permitted)$`)

// mkdirReasons say it in other words than mkdir(2), where these mislead.
var mkdirReasons = map[string]string{
	"not a directory": "is not a directory",
	"file exists":     "is a link that leads nowhere",
}

// explain turns the text of a failed set-up, which is all that comes back from
// the container's init, into an error callers can decide on.
func explain(err error, p *specs.Process) error {
	text := err.Error()
	// The last thing the init does is to look for the command.
	if _, reason, ok := strings.Cut(text, "exec: "+strconv.Quote(p.Args[0])+": "); ok {
		return &StartError{Command: p.Args[0], Reason: "exec: " + strconv.Quote(p.Args[0]) + ": " + reason}
	}
	if m := mkdirFailed.FindStringSubmatch(text); m != nil && within(p.Cwd, m[1]) {
		reason, ok := mkdirReasons[m[2]]
		if !ok {
			reason = "cannot be made"
		}
		return badRequest("working directory %q: %s %s: %w", p.Cwd, m[1], reason, err)
	}
	if strings.Contains(text, "chdir to cwd") {
		return badRequest("working directory %q cannot be used: %w", p.Cwd, err)
	}
	if m := mountRefused.FindStringSubmatch(text); m != nil {
		return badRequest("nothing can be mounted at %q, the image's files are in the way: %w", m[1], err)
	}
	return err
}

// mountRefused finds a mount that fails because of what the image has at its
// place, and not because of the node: there the source is missing, or the kernel
// says no. A mount point that cannot be made because something is missing, although
// its parents were made before, lies behind a link into /proc or /sys.
var mountRefused = regexp.MustCompile(`to rootfs at "([^"]*)".*(create mountpoint for .*: no such file or directory|inside /proc|not a directory|is a directory|too many levels of symbolic links|file exists|must be mounted on ordinary directory)$`)
