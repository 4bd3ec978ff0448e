package shell_test

import (
	"strings"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/shell"
)

// Without its variables connect-ssh says which it needs, and connects to nothing.
func TestConnectNeedsItsVariables(t *testing.T) {
	for want, cluster := range map[string]arvados.Config{
		"ARVADOS_API_HOST":  {Token: "secret"},
		"ARVADOS_API_TOKEN": {Host: "localhost:1"},
		"HOST:PORT":         {Host: "https://localhost:1/", Token: "secret"},
	} {
		var stdout, stderr strings.Builder
		code := shell.Connect(t.Context(), []string{"root@zzzzz-dz642-000000000000000"},
			shell.ConnectEnv{Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Cluster: cluster})
		if code != 255 || stdout.Len() > 0 || !strings.Contains(stderr.String(), want) || strings.Contains(stderr.String(), "secret") {
			t.Errorf("%d %q %q, want %q", code, &stdout, &stderr, want)
		}
	}
}
