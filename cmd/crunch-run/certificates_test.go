package main

import (
	"io"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
)

// What the supervisor starts gets the certificates it has found itself.
func TestCertificatesForChildren(t *testing.T) {
	for name, c := range map[string]struct{ set, want string }{
		"not set":       {"", arvados.DefaultCAFile},
		"set otherwise": {"/other.crt", "/other.crt"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SSL_CERT_FILE", c.set)
			done := make(chan error)
			go func() {
				// The thread ends with its mount namespace.
				runtime.LockOSThread()
				done <- func() error {
					if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
						return err
					}
					if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
						return err
					}
					if err := unix.Mount("tmpfs", "/etc", "tmpfs", 0, ""); err != nil {
						return err
					}
					if err := os.Mkdir("/etc/arvados", 0o755); err != nil {
						return err
					}
					if err := os.WriteFile(arvados.DefaultCAFile, nil, 0o644); err != nil {
						return err
					}
					_, err := supervision{stderr: io.Discard}.configure(t.Context())
					return err
				}()
			}()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got := os.Getenv("SSL_CERT_FILE"); got != c.want {
				t.Errorf("SSL_CERT_FILE=%q, want %q", got, c.want)
			}
		})
	}
}
