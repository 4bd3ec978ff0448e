package sshd_test

import (
	"io"
	"net"
	"os"
	"testing"

	_ "github.com/opencontainers/cgroups/devices"           // device rules
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the init's C part

	"crunch-oci/internal/leaktest"
	"crunch-oci/oci"
)

// proxyEnv makes the test binary an OpenSSH ProxyCommand: standard input and
// output are connected to the Unix socket it names.
const proxyEnv = "SSHD_TEST_PROXY"

func TestMain(m *testing.M) {
	if oci.IsInit(os.Args) {
		oci.Init()
	}
	if path := os.Getenv(proxyEnv); path != "" {
		os.Exit(proxy(path))
	}
	leaktest.Main(m)
}

func proxy(path string) int {
	c, err := net.Dial("unix", path)
	if err != nil {
		return 1
	}
	go func() {
		_, _ = io.Copy(c, os.Stdin)
		_ = c.(*net.UnixConn).CloseWrite()
	}()
	_, _ = io.Copy(os.Stdout, c)
	return 0
}
