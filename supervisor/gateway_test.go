package supervisor

import (
	"net/http"
	"slices"
	"testing"

	"crunch-oci/arvados"
)

// fakeGateway has an address, and keeps what it is told.
type fakeGateway struct{ recorded *[]string }

func (fakeGateway) Address() string               { return "node:1234" }
func (g fakeGateway) AddressRecorded(addr string) { *g.recorded = append(*g.recorded, addr) }

// The gateway keeps its address up to date once the record says Running, and
// not if it never does.
func TestGatewayAddress(t *testing.T) {
	for _, c := range []struct {
		name    string
		gateway bool
		status  int // of the update to Running
		sent    any
		told    []string
	}{
		{"with a gateway", true, 0, "node:1234", []string{"node:1234"}},
		{"without", false, 0, "", nil},
		{"and Running is refused", true, http.StatusUnprocessableEntity, "node:1234", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			var told []string
			w.sup.Gateway = nil
			if c.gateway {
				w.sup.Gateway = fakeGateway{&told}
			}
			var sent any
			w.api.refuse = func(k *call) int {
				if attrs, _ := k.Params["container"].(map[string]any); attrs["state"] == arvados.StateRunning {
					sent = attrs["gateway_address"]
					return c.status
				}
				return 0
			}
			w.run()
			if sent != c.sent || !slices.Equal(told, c.told) {
				t.Errorf("sent %v, told %q; want %v, %q", sent, told, c.sent, c.told)
			}
		})
	}
}
