package wire

import (
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
	"crunch-oci/keep/mount"
	"crunch-oci/localcluster"
)

// A site whose Keep services have certificates of its own authority, which only
// SSL_CERT_FILE names.
func TestKeepWithPrivateAuthority(t *testing.T) {
	cluster, err := localcluster.Start(t.Context(), localcluster.Options{Dir: t.TempDir(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	srv := httptest.NewUnstartedServer(&keeptest.Server{})
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused handshake
	srv.StartTLS()
	t.Cleanup(srv.Close)

	api, err := os.ReadFile(cluster.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	both := filepath.Join(t.TempDir(), "ca.crt")
	private := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(both, append(api, private...), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := arvados.Config{Host: cluster.Host(), Token: cluster.UserToken(), CAFile: both, KeepServices: []string{srv.URL}}
	_, blocks, closeAll, err := Connect(t.Context(), cfg, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	loc, err := blocks.WriteBlock(t.Context(), []byte("hello"), keep.WriteOptions{Replication: 1})
	if err != nil {
		t.Fatalf("write with an account: %v", err)
	}
	backend, err := ConnectMount(t.Context(), mount.Options{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	data, err := backend.Blocks.ReadBlock(t.Context(), loc)
	if err != nil || string(data) != "hello" {
		t.Errorf("read with the mount's account: %q, %v", data, err)
	}
}
