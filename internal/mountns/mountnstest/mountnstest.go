// Package mountnstest runs tests where whatever they mount is gone when they are,
// also if they die in the middle.
package mountnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"crunch-oci/internal/forkthread"
)

// privateVar is set in a test process that has a mount namespace of its own.
const privateVar = "MOUNTNSTEST_PRIVATE"

// Run is m.Run in a process with a mount namespace of its own, if this one is
// root's. It returns the exit code.
func Run(m *testing.M) int {
	// A fuzz worker is in its coordinator's namespace, and would lose its pipes to it.
	if os.Getuid() != 0 || os.Getenv(privateVar) != "" || slices.Contains(os.Args, "-test.fuzzworker") {
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), privateVar+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS}
	var err error
	forkthread.Do(func() { err = cmd.Run() })
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
