// Command crunch-run runs one Arvados container on this node, without a Docker
// daemon or Singularity. It takes the place of Arvados' own crunch-run: same
// command line, same environment, same records and logs.
package main

import (
	"fmt"
	"io"
	"os"

	"crunch-oci/cmd/crunch-run/wire"
)

// version is set by the build.
var version = "unknown"

func main() {
	// Whoever started us may have removed the working directory meanwhile; with
	// none, no container could be made.
	if _, err := os.Getwd(); err != nil {
		_ = os.Chdir("/")
	}
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// run chooses the role: the sub-commands are recognised only as the exact first
// argument, everything else is the supervisor's command line.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	role := ""
	if len(args) > 1 {
		role = args[1]
	}
	switch role {
	case "local":
		return runLocal(args[2:], stdout, stderr)
	case "cluster":
		return runCluster(args[2:], stdout, stderr)
	case "image":
		return runImage(args[1:], stdout, stderr)
	case "submit", "request", "collection", "unfinished":
		return runClient(args[1:], stdout, stderr)
	case "gpus":
		return runGPUs(args[2:], stdout, stderr)
	case wire.NVMLRole:
		return runNVML(args[2:], stdin, stdout, stderr)
	case "check":
		return runCheck(args[2:], stdout, stderr)
	case "shell":
		return runShell(args[2:], stderr)
	case "connect-ssh":
		return runConnectSSH(args[2:], stdin, stdout, stderr)
	case wire.KeeperRole:
		return wire.Keep(stdin)
	case "keepstore":
		return runKeepstore(args[2:], stdin, stdout, stderr)
	case "keep-mount":
		return runKeepMount(args[2:], stdout, stderr)
	}
	return runSupervisor(args, stdin, stdout, stderr)
}

// fail prints a message in one line and returns code.
func fail(stderr io.Writer, code int, format string, args ...any) int {
	fmt.Fprintf(stderr, format+"\n", args...)
	return code
}
