package supervisor

import (
	"bytes"
	"context"
	"fmt"

	"crunch-oci/supervisor/nodeinfo"
)

// examineHost runs, beside the next steps, the commands that describe the host:
// together they take as long as the start of a container.
func (r *run) examineHost() {
	done := make(chan []byte, 1)
	r.nodeInfo = done
	r.background.run(func(ctx context.Context) {
		var text bytes.Buffer
		if err := nodeinfo.WriteNode(ctx, &text, r.TempDir); err != nil {
			return // the end of the run; nobody waits any more
		}
		done <- text.Bytes()
	})
}

// describeHost adds the files that say where and as what the container runs:
// node-info.txt, node.json and container.json (spec: logs-and-stats section 9).
func (r *run) describeHost(ctx context.Context) error {
	select {
	case info := <-r.nodeInfo:
		if err := r.Log.WriteFile("node-info.txt", info); err != nil {
			return fmt.Errorf("describe host: %w", err)
		}
	case <-ctx.Done():
		return fmt.Errorf("describe host: %w", context.Cause(ctx))
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
