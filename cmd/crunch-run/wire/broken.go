package wire

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"syscall"
	"time"

	"crunch-oci/internal/forkthread"
	"crunch-oci/supervisor"
	"crunch-oci/supervisor/dispatch"
)

// hookTimeout bounds the site's hook: a container waits meanwhile for its final
// state.
const hookTimeout = time.Minute

// messageLog is where messages, and the lines of a helper's output, go.
type messageLog interface {
	Printf(format string, args ...any)
	Lines() io.WriteCloser
}

// markBroken runs the site's hook, or else leaves the marker that tells
// "crunch-run --list", and through it the cloud dispatcher, that this node cannot
// run containers (spec: lifecycle section 9).
func (j Job) markBroken(log messageLog) func(context.Context, error) {
	return func(ctx context.Context, _ error) {
		if hook := j.Flags.BrokenNodeHook; hook != "" {
			log.Printf("Running broken node hook %q", hook)
			if err := runHook(ctx, hook, hookTimeout, log); err != nil {
				log.Printf("Error running broken node hook: %v", err)
			}
			return
		}
		dir := dispatch.Dir(j.Site.LockDir)
		log.Printf("Writing %s to mark node as broken", dir.Broken())
		if err := dir.MarkBroken(); err != nil {
			log.Printf("Error writing %s: %v", dir.Broken(), err)
		}
	}
}

// blameHost marks the node as broken if err says that it is: no container can
// be run here.
func (j Job) blameHost(ctx context.Context, log messageLog, err error) {
	if supervisor.HostFault(err) {
		log.Printf("Error suggests node is unable to run containers: %v", err)
		j.markBroken(log)(ctx, err)
	}
}

// runHook runs a program without arguments, its output in the log. It ends with
// the supervisor, and after the timeout; what it leaves in the background, with
// its output still open, is not waited for.
func runHook(ctx context.Context, hook string, timeout time.Duration, log messageLog) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out := log.Lines()
	defer out.Close()
	cmd := exec.CommandContext(ctx, hook)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		return err
	}
	err = cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil // it has ended itself
	}
	return err
}
