package supervisor

import (
	"context"
	"time"

	"crunch-oci/arvados"
)

// watchInterval is the time between two looks at the record.
const watchInterval = 5 * time.Minute

// watchRecord looks at the record now and then: a signal may get lost, or never
// be sent by a dispatcher that is no more. stop ends the run, with its reason.
func (r *run) watchRecord(ctx context.Context, stop func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.after(watchInterval):
		}
		now, err := r.Records.GetContainer(ctx, r.UUID)
		if err != nil {
			continue // those who need an answer will say so
		}
		switch {
		case now.State != arvados.StateLocked && now.State != arvados.StateRunning:
			r.taken.Store(true)
			stop(reason("the container's record has been made " + now.State + ". Stopping container."))
			return
		case now.Priority == 0 && r.record.Priority > 0:
			stop(reason("the container's priority is 0: it is not wanted any more. Stopping container."))
			return
		}
	}
}
