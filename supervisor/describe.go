package supervisor

import (
	"bytes"
	"context"
	"fmt"

	"crunch-oci/supervisor/nodeinfo"
)

// describeHost adds the files that say where and as what the container runs:
// node-info.txt, node.json and container.json (spec: logs-and-stats section 9).
func (r *run) describeHost(ctx context.Context) error {
	var info bytes.Buffer
	if err := nodeinfo.WriteNode(ctx, &info, r.TempDir); err != nil {
		return fmt.Errorf("describe host: %w", err)
	}
	if err := r.Log.WriteFile("node-info.txt", info.Bytes()); err != nil {
		return fmt.Errorf("describe host: %w", err)
	}
	if r.NodeJSON != nil {
		if err := r.Log.WriteFile("node.json", r.NodeJSON); err != nil {
			return fmt.Errorf("describe host: %w", err)
		}
	}
	record, err := r.Records.ContainerRecordJSON(ctx, r.UUID)
	if err != nil {
		return fmt.Errorf("fetch container record for the log: %w", err)
	}
	text, err := nodeinfo.RecordJSON(r.UUID, record)
	if err != nil {
		return err
	}
	return r.Log.WriteFile("container.json", text)
}
