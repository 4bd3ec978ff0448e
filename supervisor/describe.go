package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
)

// describeHost adds the files that say where and as what the container runs:
// node-info.txt, node.json and container.json (spec: logs-and-stats section 9).
func (r *run) describeHost(ctx context.Context) error {
	info, err := r.NodeInfo(ctx)
	if err != nil {
		return fmt.Errorf("describe host: %w", err)
	}
	if err := r.Log.WriteFile("node-info.txt", info); err != nil {
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
	text, err := indentRecord(record)
	if err != nil {
		return fmt.Errorf("container record for the log: %w", err)
	}
	return r.Log.WriteFile("container.json", text)
}

// indentRecord writes a record for people: four spaces, keys sorted, numbers as
// they are (a priority does not fit a float).
func indentRecord(record json.RawMessage) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(record))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}
