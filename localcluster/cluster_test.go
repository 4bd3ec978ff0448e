package localcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/supervisor/config"
)

func TestStartTwiceInOneDirectory(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Options{Dir: dir})
	_, err := Start(t.Context(), Options{Dir: dir})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("second start: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, Options{Dir: dir})
}

// What a crash of the machine may leave of a database must not become a new
// cluster with the old one's blocks.
func TestEmptyDatabaseBesideBlocks(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Options{Dir: dir})
	clientOf(t, c, c.UserToken()).collection(nil, "f", "data")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "api.sqlite"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "is empty, but there are blocks") {
		t.Errorf("error %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "api.sqlite")); err != nil {
		t.Fatal(err)
	}
	start(t, Options{Dir: dir})
}

func TestIdentityStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	c := start(t, Options{Dir: dir, ClusterID: "abc12"})
	ca, err := os.ReadFile(c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	ids := c.ids
	coll := clientOf(t, c, c.UserToken()).collection(nil, "f", "data")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Options{Dir: dir, ClusterID: "other"}); err == nil {
		t.Error("another cluster id was accepted")
	}
	c, err = Start(t.Context(), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.ids != ids {
		t.Error("id or tokens have changed")
	}
	if again, _ := os.ReadFile(c.CAFile()); string(again) != string(ca) {
		t.Error("the certificate authority has changed")
	}
	got := clientOf(t, c, c.UserToken()).must("GET", "collections/"+str(coll, "uuid"), nil)
	if got["portable_data_hash"] != coll["portable_data_hash"] {
		t.Errorf("collection after restart: %v", got)
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "api.sqlite": 0o600, "ca.key": 0o600} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%q: mode %v, %v", name, fi.Mode(), err)
		}
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{}, {Dir: "/dev/null/x"}, {Dir: t.TempDir(), ClusterID: "Toolong"}, {Dir: t.TempDir(), Listen: "nonsense"},
		{Dir: t.TempDir(), Listen: "256.0.0.1:0"}} {
		if c, err := Start(t.Context(), o); err == nil {
			c.Close()
			t.Errorf("%+v was accepted", o)
		}
	}
}

// A client that comes in at another address is sent to Keep at that address.
func TestSecondAddress(t *testing.T) {
	c := start(t, Options{AlsoListen: []string{"127.0.0.2"}})
	other := newClient(t, c.HostAt("127.0.0.2"), c.CAFile(), c.UserToken())
	items := other.must("GET", "keep_services/accessible", nil)["items"].([]any)
	item := items[0].(map[string]any)
	if item["service_host"] != "127.0.0.2" {
		t.Fatalf("got %v", item)
	}
	other.keep = fmt.Sprintf("http://%v:%v", item["service_host"], item["service_port"])
	other.put("over the bridge")
	first := clientOf(t, c, c.UserToken()).must("GET", "keep_services/accessible", nil)["items"].([]any)[0].(map[string]any)
	if first["service_host"] != "127.0.0.1" || first["uuid"] != item["uuid"] {
		t.Errorf("got %v", first)
	}
}

func TestAllAddresses(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0", "localhost:0"} {
		c := start(t, Options{Listen: listen})
		cl := clientOf(t, c, c.UserToken())
		cl.must("GET", "users/current", nil)
		cl.put("x")
		item := cl.must("GET", "keep_services/accessible", nil)["items"].([]any)[0].(map[string]any)
		cl.keep = fmt.Sprintf("http://%v:%v", item["service_host"], item["service_port"])
		cl.put("x")
	}
}

func BenchmarkStartExisting(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		c, err := Start(b.Context(), Options{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		c.Close()
		b.StartTimer()
	}
}

// The configuration file is one that programs of a cluster can read, with what is
// right for this start, and nobody else can.
func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		c, err := Start(t.Context(), Options{Dir: dir, NoSync: true, ClusterID: "zzzzz"})
		if err != nil {
			t.Fatal(err)
		}
		id, raw, err := config.ReadClusterFile(c.ConfigFile())
		if err != nil || id != "zzzzz" {
			t.Fatalf("%s %v", id, err)
		}
		var file struct {
			SystemRootToken, ManagementToken string
			Services                         struct{ Controller struct{ ExternalURL string } }
		}
		if err := json.Unmarshal(raw, &file); err != nil {
			t.Fatal(err)
		}
		cl := clientOf(t, c, file.SystemRootToken)
		cl.base = strings.TrimSuffix(file.Services.Controller.ExternalURL, "/")
		if user := cl.must("GET", "users/current", nil); user["is_admin"] != true {
			t.Errorf("user %v", user)
		}
		if a := cl.as(file.ManagementToken).send("GET", cl.base+"/_health/ping", nil, nil); a.status != 200 {
			t.Errorf("health: %d %s", a.status, a.body)
		}
		if fi, err := os.Stat(c.ConfigFile()); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", fi.Mode(), err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Started again, a cluster is where it was, unless somebody else has taken the
// place.
func TestPortsStay(t *testing.T) {
	o := Options{Dir: t.TempDir(), NoSync: true}
	again := func() (host, keep string) {
		t.Helper()
		c, err := Start(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		clientOf(t, c, c.UserToken()).must("GET", "users/current", nil)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		return c.Host(), c.KeepURL()
	}
	// In between another program may be given the port; not again and again.
	stayed := false
	host, keep := again()
	for range 10 {
		h, k := again()
		stayed = stayed || h == host && k == keep
		host, keep = h, k
	}
	if !stayed {
		t.Error("it is somewhere else after each start")
	}
	taken, err := net.Listen("tcp", host)
	if err == nil { // else it is taken already
		defer taken.Close()
	}
	if h, _ := again(); h == host {
		t.Errorf("listens where somebody else does: %s", host)
	}
}
