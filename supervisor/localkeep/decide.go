// Package localkeep decides whether a run gets a block server of its own on this
// node, and runs it as a child process (spec: cli-and-dispatch section 10). It
// saves the way over the network where the volumes can be reached from here. It
// is never needed: whatever goes wrong, the cluster's own servers are used.
package localkeep

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"crunch-oci/supervisor/config"
)

// Decide says whether a server may be started. If not, the reason is a line for
// the log: operators know these by their words. cluster is nil if no
// configuration is known.
func Decide(buffers int, cluster *config.Cluster) (reason string, ok bool) {
	const not = "not starting a local keepstore process because "
	switch {
	case buffers < 1:
		return fmt.Sprintf(not+"KeepBuffers=%d in config", buffers), false
	case cluster == nil:
		return not + "cluster config file was not loaded", false
	}
	for _, uuid := range slices.Sorted(maps.Keys(cluster.Volumes)) {
		v := cluster.Volumes[uuid]
		if len(v.AccessViaHosts) > 0 {
			return fmt.Sprintf(not+"a volume (%s) uses AccessViaHosts", uuid), false
		}
		if !v.ReadOnly && v.Replication < cluster.Collections.DefaultReplication {
			return fmt.Sprintf(not+"a writable volume (%s) has replication less than Collections.DefaultReplication (%d < %d)",
				uuid, v.Replication, cluster.Collections.DefaultReplication), false
		}
	}
	return "", true
}

// handOver is the configuration for the server: the cluster's with few changes,
// all that is unknown included.
func handOver(id string, cluster json.RawMessage, buffers int) ([]byte, error) {
	var c map[string]json.RawMessage
	if err := json.Unmarshal(cluster, &c); err != nil {
		return nil, err
	}
	for _, change := range []struct {
		section string
		values  map[string]any
	}{
		{"API", map[string]any{"MaxKeepBlobBuffers": buffers}},
		// Emptying the trash is for servers that live longer than a container.
		{"Collections", map[string]any{"BlobTrash": false, "BlobTrashConcurrency": 0, "BlobDeleteConcurrency": 0}},
	} {
		section := make(map[string]json.RawMessage)
		if raw, ok := c[change.section]; ok {
			if err := json.Unmarshal(raw, &section); err != nil {
				return nil, err
			}
		}
		for k, v := range change.values {
			text, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			section[k] = text
		}
		text, err := json.Marshal(section)
		if err != nil {
			return nil, err
		}
		if c == nil {
			c = make(map[string]json.RawMessage)
		}
		c[change.section] = text
	}
	return json.Marshal(map[string]any{"Clusters": map[string]any{id: c}})
}

var (
	sharedSpace = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	everywhere  = netip.MustParseAddr("0.0.0.0")
)

// choose picks the address to listen on: not the loopback, because containers
// use it too.
func choose(addresses []netip.Addr) netip.Addr {
	var best netip.Addr
	for _, a := range addresses {
		a = a.Unmap()
		if !a.Is4() || a.IsLoopback() || a.IsLinkLocalUnicast() {
			continue
		}
		if best.IsValid() && (sharedSpace.Contains(a) && !sharedSpace.Contains(best) ||
			sharedSpace.Contains(a) == sharedSpace.Contains(best) && best.Less(a)) {
			continue
		}
		best = a
	}
	if !best.IsValid() {
		return everywhere
	}
	return best
}
