package wire

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/supervisor/config"
)

// The site's command is told what arv-mount is told, and nothing private.
func TestForeignMounter(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(t.TempDir(), "arv-mount")
	err := os.WriteFile(script, []byte(`#!/bin/sh
echo "$@"
env
for dir; do :; done
mount -t tmpfs tmpfs "$dir"
exec sleep 1000
`), 0o755)
	if err != nil {
		t.Fatal(err)
	}
	m := mounter{
		site:    config.Site{KeepMount: []string{script, "--site-option"}},
		cluster: arvados.Config{Host: "api.example:443", Token: "dispatcher", CAFile: "/ca.crt"},
	}
	var stdout, stderr bytes.Buffer
	server, err := m.Start(t.Context(), []string{"--foreground", dir}, "container", &stdout, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := stdout.String()
	for _, want := range []string{
		"--site-option --foreground " + dir + "\n", "\nARVADOS_API_HOST=api.example:443\n",
		"\nARVADOS_API_TOKEN=container\n", "\nSSL_CERT_FILE=/ca.crt\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if strings.Contains(got, "CRUNCH_RUN_READY_FD") {
		t.Errorf("private variable in %q", got)
	}
	if stderr.Len() > 0 {
		t.Errorf("stderr %q", stderr.String())
	}
}
