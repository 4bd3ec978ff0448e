// Package prices knows what the instance has cost since when, and what that
// makes for a run (spec: cli-and-dispatch section 13). Prices are per hour.
package prices

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Price is what the instance costs an hour from a moment on.
type Price struct {
	StartTime time.Time
	Price     float64
}

// String is the message about a change, as operators have always seen it.
func (p Price) String() string {
	return fmt.Sprintf("Instance price changed to %#.3g at %s", p.Price, p.StartTime.UTC())
}

// Parse reads what the dispatcher has written: a JSON array of prices.
func Parse(data []byte) (list []Price, err error) {
	err = json.Unmarshal(data, &list)
	return list, err
}

// OfInstanceType is the price in the dispatcher's description of the instance,
// 0 if there is none that makes sense.
func OfInstanceType(text string) float64 {
	// A wrong type anywhere makes the whole description doubtful.
	var t struct {
		Name, ProviderType                     string
		VCPUs                                  int
		RAM                                    int64
		Scratch, IncludedScratch, AddedScratch int64
		Preemptible                            bool
		Price                                  float64
	}
	if json.Unmarshal([]byte(text), &t) != nil || t.Price < 0 {
		return 0
	}
	return t.Price
}

// History is what is known of the prices, the newest first. Its zero value knows
// nothing.
type History []Price

// Add returns the history with newly received prices, and those among them that
// are news, the oldest first. Of two prices for the same time the one received
// later counts.
func (h History) Add(received []Price) (all History, news []Price) {
	// The sort is stable, and of equal times the last one stays.
	all = append(slices.Clone(h), received...)
	slices.SortStableFunc(all, func(a, b Price) int { return b.StartTime.Compare(a.StartTime) })
	kept := all[:0]
	for i, p := range all {
		if i+1 < len(all) && (all[i+1].StartTime.Equal(p.StartTime) || all[i+1].Price == p.Price) {
			continue
		}
		kept = append(kept, p)
	}
	for _, p := range slices.Backward(kept) {
		if len(h) == 0 || p.StartTime.After(h[0].StartTime) {
			news = append(news, p)
		}
	}
	return kept, news
}

// Cost is what the time between from and to has cost. Before the first known
// price that one is assumed, and usual while none is known or all are of the
// future.
func (h History) Cost(from, to time.Time, usual float64) (cost float64) {
	known := slices.DeleteFunc(slices.Clone(h), func(p Price) bool { return p.StartTime.After(to) })
	if len(known) == 0 {
		known = History{{Price: usual}}
	}
	// Whatever was the case before counts from the beginning.
	known[len(known)-1].StartTime = from.Add(-1)
	for _, p := range known {
		begin := p.StartTime
		if begin.Before(from) {
			begin = from
		}
		if begin.Before(to) {
			cost += p.Price * to.Sub(begin).Hours()
			to = begin
		}
		if begin.Equal(from) {
			break
		}
	}
	return cost
}
