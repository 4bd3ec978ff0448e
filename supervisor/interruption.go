package supervisor

import (
	"context"
	"fmt"
	"time"
)

// watchInterruptions tells users that the cloud will take the instance away.
// The container goes on: it may be done in time.
func (r *run) watchInterruptions(ctx context.Context) {
	var last Interruption
	for {
		next, err := r.NextInterruption(ctx)
		if err != nil {
			return
		}
		if next.Action == last.Action && next.Time.Equal(last.Time) {
			continue
		}
		last = next
		text := fmt.Sprintf("Cloud provider scheduled instance %s at %s", next.Action, next.Time.UTC().Format(time.RFC3339))
		r.Log.Printf("%s", text)
		if err := r.warn(ctx, warning{
			source: "interruption", text: "preemption notice", detail: text, more: map[string]string{"preemptionNotice": text},
		}); err != nil && ctx.Err() == nil {
			r.Log.Printf("error updating container runtime_status: %v", err)
		}
		r.Log.SaveSoon()
	}
}
