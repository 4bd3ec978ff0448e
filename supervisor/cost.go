package supervisor

import (
	"context"
	"sync"

	"crunch-oci/supervisor/prices"
)

// costs is what is known about the instance's price.
type costs struct {
	mu      sync.Mutex
	history prices.History
}

// loadPrices reads what the dispatcher has written about prices, and logs what
// is new.
func (r *run) loadPrices() {
	if r.ReadPrices == nil {
		return
	}
	received, err := r.ReadPrices()
	if err != nil {
		r.Log.Printf("loadPrices: %v", err)
		return
	}
	r.costs.mu.Lock()
	var news []prices.Price
	r.costs.history, news = r.costs.history.Add(received)
	r.costs.mu.Unlock()
	for _, p := range news {
		r.Log.Printf("%v", p)
	}
}

// watchPrices reads the prices again, and publishes the cost so far, whenever it
// is told to, until ctx ends.
func (r *run) watchPrices(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.Reprice:
		}
		r.loadPrices()
		if !r.isRunning.Load() {
			continue // the server takes no cost yet, or any more
		}
		if err := r.Records.UpdateContainer(ctx, r.UUID, map[string]any{"cost": r.cost()}); err != nil && ctx.Err() == nil {
			r.Log.Printf("ignoring error updating cost: %v", err)
		}
	}
}

// cost is what the instance has cost since the run began.
func (r *run) cost() float64 {
	r.costs.mu.Lock()
	defer r.costs.mu.Unlock()
	return r.costs.history.Cost(r.began, r.now(), r.HourlyPrice)
}
