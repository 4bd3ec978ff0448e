package main

import (
	"fmt"
	"io"
	"os"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/shell"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/dispatch"
)

// runConnectSSH is a ProxyCommand for ssh(1).
func runConnectSSH(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	_, stop, release := stopSignals(true)
	defer release()
	cfg, warning := arvados.ConfigFromEnv(os.LookupEnv)
	if warning != nil {
		fmt.Fprintln(stderr, warning)
	}
	cfg.Budget = clientBudget
	return shell.Connect(stop, args, shell.ConnectEnv{Stdin: stdin, Stdout: stdout, Stderr: stderr, Cluster: cfg})
}

// runShell runs a command in a container of this node.
func runShell(args []string, stderr io.Writer) int {
	site, err := config.Load(config.Sources{Lookup: os.LookupEnv, Environ: os.Environ()})
	if err != nil {
		return fail(stderr, 2, "crunch-run shell: %v", err)
	}
	return shell.Main(args, shell.Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: stderr, RuntimeDir: site.RuntimeDir, ValidUUID: dispatch.ValidUUID,
	})
}
