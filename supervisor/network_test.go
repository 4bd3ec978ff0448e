package supervisor

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/oci"
)

// fakeConnection is a container in a network that there is not.
type fakeConnection struct{ w *world }

func (c fakeConnection) Names() oci.Names {
	return oci.Names{Addresses: []netip.Addr{netip.MustParseAddr("172.30.0.5")}, Resolv: []byte("nameserver 10.0.0.53\n")}
}
func (c fakeConnection) Notes() []string             { return []string{"forwarding was off"} }
func (c fakeConnection) Close(context.Context) error { c.w.note("disconnect"); return nil }

// A container is connected between its creation and its start, disconnected
// before it is removed, and also if it is never started.
func TestNetwork(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		err    error
		state  string
		code   any
		want   []string
		said   string
	}{
		"works":                {func(*world) {}, nil, arvados.StateComplete, 0, []string{"create container", "connect", "start container", "disconnect", "delete container"}, ""},
		"cannot be connected":  {func(*world) {}, errTest, arvados.StateQueued, nil, []string{"create container", "connect", "delete container"}, "While creating container: no luck"},
		"command cannot start": {func(w *world) { w.failAt("start container", errTest) }, nil, arvados.StateCancelled, nil, []string{"create container", "connect", "start container", "disconnect", "delete container"}, "could not start container: no luck"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.sup.Network = func(bool) (Network, error) {
				return Network{Kind: oci.NetworkPrivate, Connect: func(_ context.Context, pid int) (Connection, error) {
					w.note("connect")
					if pid == 0 || c.err != nil {
						return nil, c.err
					}
					return fakeConnection{w}, nil
				}}, nil
			}
			c.change(w)
			w.run()
			w.ends(c.state, c.code, c.said)
			var got []string
			for _, line := range w.trace {
				if slices.Contains([]string{"create container", "connect", "start container", "disconnect", "delete container"}, line) && !slices.Contains(got, line) {
					got = append(got, line)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("order %q, want %q", got, c.want)
			}
			if noted := strings.Contains(w.said(), "network: forwarding was off\n"); noted != (c.err == nil) {
				t.Errorf("log:\n%s", w.said())
			}
		})
	}
}
