package wire

import (
	"context"
	"encoding/json"
	"time"

	"crunch-oci/keep"
)

// clusterVariable hands what the supervisor knows of the cluster to its FUSE
// server, which need not ask for it again.
const clusterVariable = "CRUNCH_RUN_CLUSTER"

// handedOver is the value of clusterVariable, as JSON. Its zero value means that
// nothing is known.
type handedOver struct {
	Replication  int
	SignatureTTL time.Duration
	// Classes are the cluster's default storage classes, Slash is its
	// ForwardSlashNameSubstitution.
	Classes []string
	Slash   string
	// Services is the latest list of Keep services; it is renewed in time.
	Services []keep.Service
}

// handOver is what a FUSE server is told. A list of services that cannot be had
// now is left for it to find.
func (f *clusterFacts) handOver(ctx context.Context) string {
	h := handedOver{Replication: f.replication, SignatureTTL: f.signatureTTL, Classes: f.classes, Slash: f.slash}
	if list, err := f.services.KeepServices(ctx); err == nil {
		h.Services = list
	}
	text, err := json.Marshal(h)
	if err != nil {
		return ""
	}
	return string(text)
}

// receive is what the supervisor has handed over; false: it is not there, or of
// no use.
func receive(text string) (h handedOver, ok bool) {
	if text == "" || json.Unmarshal([]byte(text), &h) != nil {
		return handedOver{}, false
	}
	return h, h.Replication > 0 || h.SignatureTTL > 0
}
