package network

import (
	"context"
	"fmt"
	"testing"
)

// BenchmarkConnect measures what a container's start and end pay for the bridge:
// alone, when it is made and removed each time, and beside others.
func BenchmarkConnect(b *testing.B) {
	for name, beside := range map[string]bool{"alone": false, "beside others": true} {
		b.Run(name, func(b *testing.B) {
			newWorld(b, false)
			bridge := newBridge(b)
			if beside {
				u, err := bridge.Open(b.Context())
				must(b, err)
				defer func() { must(b, u.Close(context.Background())) }()
			}
			i := 0
			for b.Loop() {
				b.StopTimer()
				ns := newNamespace(b)
				i++
				b.StartTimer()
				c, err := bridge.Connect(b.Context(), fmt.Sprintf("zzzzz-dz642-%015d", i), ns)
				b.StopTimer()
				must(b, err)
				must(b, c.Close(context.Background()))
				must(b, ns.Close())
				b.StartTimer()
			}
		})
	}
}
