// Package nvidia finds NVIDIA GPUs and what of their driver a container needs.
//
// The driver is asked through its library, NVML, in a process of its own
// (Helper): the library is loaded only where GPUs are asked for, and when it
// crashes, or waits for ever for a GPU that has fallen off the bus, that is not
// the end of the supervisor.
package nvidia

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"crunch-oci/gpu/device"
	"crunch-oci/internal/forkthread"
)

// message is a line from the helper.
type message struct {
	Error     string            `json:"error,omitempty"`
	NoDriver  bool              `json:"no_driver,omitempty"`
	Inventory *device.Inventory `json:"inventory,omitempty"`
	Samples   []device.Sample   `json:"samples,omitempty"`
	Event     *device.Event     `json:"event,omitempty"`
	Note      string            `json:"note,omitempty"`
}

// command is a line to it.
type command struct {
	// Watch are UUIDs of devices to sample, and to send events of.
	Watch  []string `json:"watch,omitempty"`
	Sample bool     `json:"sample,omitempty"`
}

const (
	// startTimeout is long enough for sixteen GPUs whose driver first has to
	// start them (without persistence mode).
	startTimeout = 2 * time.Minute
	// sampleTimeout bounds the wait for an answer. A GPU in trouble may not give
	// any.
	sampleTimeout = 3 * time.Second
	// longestLine bounds what a line may have, in bytes.
	longestLine = 1 << 20
)

// Helper is the process that has NVML loaded. It dies with this one.
type Helper struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stderr  *tail
	lines   chan message // closed when the process is gone
	replies chan []device.Sample
	done    chan struct{}
	idle    chan struct{} // closed when nothing of it is told any more

	asked bool // for samples, and there was no answer yet; Sample's own

	mu      sync.Mutex
	closed  bool
	onEvent func(device.Event)
	onNote  func(string)
	early   []message // events and notes before Watch
}

// StartHelper starts a program that calls Serve on its standard input and
// output, and returns what the node has. The error is device.ErrNoDriver if
// there is no working driver.
func StartHelper(ctx context.Context, program string, args, env []string) (_ *Helper, inv device.Inventory, err error) {
	h := &Helper{stderr: new(tail), lines: make(chan message), replies: make(chan []device.Sample, 1), done: make(chan struct{}), idle: make(chan struct{})}
	h.cmd = exec.Command(program, args...)
	h.cmd.Env, h.cmd.Stderr = env, h.stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// A process that does not end keeps its pipes open.
	h.cmd.WaitDelay = time.Second
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return nil, inv, fmt.Errorf("ask the NVIDIA driver: %w", err)
	}
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, inv, fmt.Errorf("ask the NVIDIA driver: %w", err)
	}
	forkthread.Do(func() { err = h.cmd.Start() })
	if err != nil {
		return nil, inv, fmt.Errorf("ask the NVIDIA driver: %w", err)
	}
	go h.read(stdout)
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case m, ok := <-h.lines:
		switch {
		case !ok:
			err = fmt.Errorf("%w: the NVIDIA driver's library has ended the process that asked it%s", device.ErrNoDriver, h.stderr)
		case m.NoDriver:
			err = fmt.Errorf("%w: %s", device.ErrNoDriver, m.Error)
		case m.Inventory == nil:
			err = fmt.Errorf("%w: the NVIDIA driver's answer is not understood", device.ErrNoDriver)
		}
		if err == nil {
			go h.dispatch()
			return h, *m.Inventory, nil
		}
	case <-timer.C:
		err = fmt.Errorf("%w: the NVIDIA driver has not answered for %s", device.ErrNoDriver, startTimeout)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	_ = h.cmd.Process.Kill() // it has nothing to lose
	go h.dispatch()
	h.Close()
	return nil, inv, err
}

// read hands on the lines of the process, and reaps it.
func (h *Helper) read(stdout io.Reader) {
	defer close(h.done)
	defer close(h.lines)
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, longestLine)
	for lines.Scan() {
		var m message
		if json.Unmarshal(lines.Bytes(), &m) == nil {
			h.lines <- m
		}
	}
	// Also when a line was too long. How it ended does not matter to anybody.
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

// dispatch sorts what comes after the inventory.
func (h *Helper) dispatch() {
	defer close(h.idle)
	for m := range h.lines {
		if m.Samples != nil {
			select {
			case h.replies <- m.Samples:
			default: // a second answer to one question
			}
			continue
		}
		h.mu.Lock()
		watching, closed := h.onEvent != nil, h.closed
		if !watching && len(h.early) < maxEarly {
			h.early = append(h.early, m)
		}
		h.mu.Unlock()
		if watching && !closed {
			h.tell(m)
		}
	}
	h.mu.Lock()
	lost := h.onNote != nil && !h.closed
	h.mu.Unlock()
	if lost {
		h.onNote("the process that asks the NVIDIA driver has ended: there are no more statistics of the GPUs, and their errors are not reported" + h.stderr.String())
	}
}

// maxEarly bounds what is kept of what nobody has asked for.
const maxEarly = 100

func (h *Helper) tell(m message) {
	switch {
	case m.Event != nil:
		h.onEvent(*m.Event)
	case m.Note != "":
		h.onNote(m.Note)
	case m.Error != "":
		h.onNote(m.Error)
	}
}

// Watch makes the helper sample these devices, and report errors of their GPUs.
// The functions are called from another goroutine. It is called once.
func (h *Helper) Watch(devices []device.Device, event func(device.Event), note func(string)) error {
	var uuids []string
	for _, d := range devices {
		uuids = append(uuids, d.UUID)
	}
	h.mu.Lock()
	h.onEvent, h.onNote = event, note
	early := h.early
	h.early = nil
	h.mu.Unlock()
	for _, m := range early {
		h.tell(m)
	}
	return h.send(command{Watch: uuids})
}

// Sample asks what the watched devices are doing; nil if there is no answer.
// A question that has not been answered is not asked again: the driver may be
// stuck with it. It is called from one goroutine.
func (h *Helper) Sample() []device.Sample {
	if !h.asked && h.send(command{Sample: true}) != nil {
		return nil
	}
	h.asked = true
	timer := time.NewTimer(sampleTimeout)
	defer timer.Stop()
	select {
	case s := <-h.replies:
		h.asked = false
		return s
	case <-timer.C:
	case <-h.done:
	}
	return nil
}

// send writes a command; a pipe holds more of them than are ever unanswered.
func (h *Helper) send(c command) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	_, err = h.stdin.Write(append(text, '\n'))
	return err
}

// closeTimeout is what a helper gets to end by itself.
const closeTimeout = 2 * time.Second

// Close ends the process, and reports nothing after that. A process that hangs in
// the driver cannot be waited for.
func (h *Helper) Close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	_ = h.stdin.Close()
	if !within(closeTimeout, h.idle) {
		_ = h.cmd.Process.Kill()
		within(closeTimeout, h.idle)
	}
}

func within(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// tail keeps the beginning of what a process writes to stderr.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const longestTail = 500

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p[:min(len(p), longestTail-len(t.text))]...)
	return len(p), nil
}

// String is ": text" in one line, or nothing.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if text := strings.Join(strings.Fields(string(t.text)), " "); text != "" {
		return ": " + text
	}
	return ""
}
