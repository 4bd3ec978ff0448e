package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"crunch-oci/arvados"
	"crunch-oci/internal/undo"
	"crunch-oci/supervisor/unfinished"
)

// settle forgets, beside the run, the results on this node that the cluster has
// already, because their supervisor was killed between telling it and forgetting
// them. One request each; usually there are none. What cannot be found out is
// left to the operator.
func (j Job) settle(ctx context.Context, api *arvados.Client, dir unfinished.Dir, stderr io.Writer, cleanup *undo.Stack) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		entries, _ := dir.List() // the other ones are for "unfinished list" to complain of
		for _, e := range entries {
			if e.InUse || e.UUID == j.UUID || e.APIHost != j.Cluster.Host {
				continue
			}
			if err := forgetDelivered(ctx, api, dir, e.UUID); err == nil {
				fmt.Fprintf(stderr, "%s: the cluster has the results of %s already; forgot those kept in %s\n", j.UUID, e.UUID, dir)
			} else if !errors.Is(err, errNotDelivered) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unfinished.ErrInUse) && ctx.Err() == nil {
				fmt.Fprintf(stderr, "%s: look whether the cluster has the results of %s: %v\n", j.UUID, e.UUID, err)
			}
		}
	}()
	cleanup.Add("stop looking after kept results", func(context.Context) error { cancel(); <-done; return nil })
}

// errNotDelivered says that a record does not have what is kept.
var errNotDelivered = errors.New("the cluster does not have these results")

func forgetDelivered(ctx context.Context, api *arvados.Client, dir unfinished.Dir, uuid string) error {
	record, err := api.GetContainer(ctx, uuid)
	if err != nil {
		return err
	}
	kept, result, err := dir.Take(uuid)
	if err != nil {
		return err
	}
	if !result.DeliveredAs(record.State, record.Log, record.Output) {
		return errors.Join(errNotDelivered, kept.Close())
	}
	return kept.Remove()
}
