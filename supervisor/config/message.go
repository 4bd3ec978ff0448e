package config

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
)

// Message is what a dispatcher writes to stdin for -stdin-config (spec:
// cli-and-dispatch section 3). Unknown keys are ignored, keys match whatever
// their case.
type Message struct {
	// Env is to be put into the environment before anything else. It holds
	// tokens.
	Env map[string]string
	// KeepBuffers is the number of 64 MiB buffers for a local keepstore; less
	// than 1 means not to start one.
	KeepBuffers int
	// EC2SpotCheck asks for a watch on interruptions of a spot instance.
	EC2SpotCheck bool
	// Cluster is the complete cluster configuration, secrets included, or nil.
	// It is kept as it is: only what is needed is looked at (ParseCluster), and
	// the rest is handed on to keepstore.
	Cluster json.RawMessage
}

// maxMessage bounds a message in bytes, blanks before it included. Cluster
// configurations have some ten thousand.
const maxMessage = 64 << 20

// errMessageTooLong says that a message does not end.
var errMessageTooLong = fmt.Errorf("no end after %d MiB", maxMessage>>20)

// ReadMessage decodes the first JSON value of r, which ends within 64 MiB; what
// follows it is ignored. null and {} are empty messages. An error begins with
// "decode stdin:" and quotes no value.
func ReadMessage(r io.Reader) (Message, error) {
	var m Message
	limited := &io.LimitedReader{R: r, N: maxMessage}
	if err := json.NewDecoder(limited).Decode(&m); err != nil {
		if limited.N == 0 && (err == io.EOF || err == io.ErrUnexpectedEOF) {
			err = errMessageTooLong
		}
		return Message{}, fmt.Errorf("decode stdin: %w", err)
	}
	if string(m.Cluster) == "null" {
		m.Cluster = nil
	}
	return m, nil
}

// SetEnv puts Env into the environment with setenv, which is os.Setenv or like
// it. Errors name the variable but not its value.
func (m Message) SetEnv(setenv func(key, value string) error) error {
	for _, key := range slices.Sorted(maps.Keys(m.Env)) {
		if err := setenv(key, m.Env[key]); err != nil {
			return fmt.Errorf("setenv(%q): %w", key, err)
		}
	}
	return nil
}

// String keeps the tokens out of logs.
func (m Message) String() string {
	return fmt.Sprintf("message with variables %q, %d keep buffers, %d bytes of cluster configuration",
		slices.Sorted(maps.Keys(m.Env)), m.KeepBuffers, len(m.Cluster))
}

// GoString keeps the tokens out of logs.
func (m Message) GoString() string { return m.String() }
