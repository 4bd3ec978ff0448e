// Package nodeinfo describes the node and the container for the log collection:
// node-info.txt and container.json (logs-and-stats.md, section 9).
package nodeinfo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"crunch-oci/internal/forkthread"
)

// patience is how long a command may take. df waits for ever for a network
// mount whose server is gone, and that must not keep the node from running
// containers that do not need it.
const patience = 5 * time.Second

// entry is one part of node-info.txt: what a command writes. "cat" with one file
// of /proc is no process, but read here: the container's start waits for all
// this.
type entry struct {
	label   string
	command []string
}

func (e entry) output(ctx context.Context, patience time.Duration) ([]byte, error) {
	if len(e.command) == 2 && e.command[0] == "cat" && strings.HasPrefix(e.command[1], "/proc/") {
		return os.ReadFile(e.command[1])
	}
	return run(ctx, e.command, patience)
}

func entries(tempDir string) []entry {
	return []entry{
		{"Host Information", []string{"uname", "-a"}},
		{"CPU Information", []string{"cat", "/proc/cpuinfo"}},
		{"Memory Information", []string{"cat", "/proc/meminfo"}},
		{"Disk Space", []string{"df", "-m", "/", tempDir}},
		{"Disk INodes", []string{"df", "-i", "/", tempDir}},
	}
}

// WriteNode writes node-info.txt to w; tempDir is where the run keeps its
// temporary files. A command that fails, or takes more than 5 s, is noted in
// the text. The error is that of w, or of ctx when it has ended.
func WriteNode(ctx context.Context, w io.Writer, tempDir string) error {
	return write(ctx, w, entries(tempDir), patience)
}

func write(ctx context.Context, w io.Writer, list []entry, patience time.Duration) error {
	outputs, errs := make([][]byte, len(list)), make([]error, len(list))
	var running sync.WaitGroup
	for i, e := range list {
		running.Go(func() { outputs[i], errs[i] = e.output(ctx, patience) })
	}
	running.Wait()
	for i, e := range list {
		output, err := outputs[i], errs[i]
		if ctx.Err() != nil {
			return fmt.Errorf("describe the node: %w", ctx.Err())
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s\n%s", e.label, output)
		if err != nil {
			if n := len(output); n > 0 && output[n-1] != '\n' {
				b.WriteByte('\n')
			}
			fmt.Fprintf(&b, "While running command [%s]: %v\n", strings.Join(e.command, " "), err)
		}
		b.WriteByte('\n')
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// run returns what a command has written to stdout and stderr. A process that
// does not end when it is killed, because the kernel waits for a device on its
// behalf, is left behind: it ends when the kernel lets it.
func run(ctx context.Context, command []string, patience time.Duration) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var output bytes.Buffer
	cmd := exec.CommandContext(limited, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = patience / 5 // for children that still hold the pipe
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	giveUp := time.NewTimer(patience + patience/2)
	defer giveUp.Stop()
	select {
	case err = <-ended:
		if limited.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("did not end within %v", patience)
		}
		return output.Bytes(), err
	case <-giveUp.C:
		return nil, fmt.Errorf("did not end within %v, not even when killed", patience)
	}
}

// ErrNoRecord means that the API server knows no such container any more.
var ErrNoRecord = errors.New("no container record found")

// RecordJSON returns the text of container.json: the record as the API server
// sent it, with sorted keys, indented by four spaces, numbers unchanged. The
// record carries neither secrets nor tokens, because the API never returns
// them. Without a record the error wraps ErrNoRecord.
func RecordJSON(uuid string, record json.RawMessage) ([]byte, error) {
	if len(bytes.TrimSpace(record)) == 0 {
		return nil, fmt.Errorf("error: %w for %s", ErrNoRecord, uuid)
	}
	d := json.NewDecoder(bytes.NewReader(record))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("container record of %s: %w", uuid, err)
	}
	if v == nil {
		return nil, fmt.Errorf("error: %w for %s", ErrNoRecord, uuid)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "    ")
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("container record of %s: %w", uuid, err)
	}
	return b.Bytes(), nil
}
