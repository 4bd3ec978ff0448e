package localkeep

import (
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"testing"

	"crunch-oci/supervisor/config"
)

func vectors(t *testing.T, name string, to any) {
	t.Helper()
	text, err := os.ReadFile("../../testdata/spec/cli-and-dispatch.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(all[name], to); err != nil || reflect.ValueOf(to).Elem().Len() == 0 {
		t.Fatalf("%s: %v", name, err)
	}
}

func TestDecide(t *testing.T) {
	var list []struct {
		Name, Message string
		KeepBuffers   int
		Cluster       json.RawMessage
		Start         bool
	}
	vectors(t, "keepstore_decision", &list)
	for _, v := range list {
		var cluster *config.Cluster
		if string(v.Cluster) != "null" {
			c, err := config.ParseCluster(v.Cluster)
			if err != nil {
				t.Fatal(err)
			}
			cluster = &c
		}
		reason, ok := Decide(v.KeepBuffers, cluster)
		if ok != v.Start || !ok && reason != v.Message {
			t.Errorf("%s: %v, %q", v.Name, ok, reason)
		}
	}
}

func TestChooseAddress(t *testing.T) {
	var list []struct {
		Addresses []string
		Chosen    string
	}
	vectors(t, "keepstore_address", &list)
	for _, v := range list {
		addresses := []netip.Addr{netip.MustParseAddr("fe80::1"), netip.MustParseAddr("2001:db8::1")}
		for _, a := range v.Addresses {
			addresses = append(addresses, netip.MustParseAddr(a))
		}
		if got := choose(addresses); got.String() != v.Chosen {
			t.Errorf("%v: %v, want %v", v.Addresses, got, v.Chosen)
		}
	}
}

// Everything in the cluster's configuration reaches the server, but for what is
// changed.
func TestHandOver(t *testing.T) {
	text, err := handOver("zzzzz", json.RawMessage(`{"API":{"MaxKeepBlobBuffers":128,"New":1.50},"Collections":{"BlobSigningKey":"k"},"Other":[1]}`), 3)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"Clusters":{"zzzzz":{"API":{"MaxKeepBlobBuffers":3,"New":1.50},` +
		`"Collections":{"BlobDeleteConcurrency":0,"BlobSigningKey":"k","BlobTrash":false,"BlobTrashConcurrency":0},"Other":[1]}}}`
	if string(text) != want {
		t.Errorf("%s\nwant\n%s", text, want)
	}
	for _, odd := range []string{`{}`, `null`} {
		if _, err := handOver("zzzzz", json.RawMessage(odd), 1); err != nil {
			t.Errorf("%s: %v", odd, err)
		}
	}
	if _, err := handOver("zzzzz", json.RawMessage(`{"API":7}`), 1); err == nil {
		t.Error("no error")
	}
}
