package vmtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// console keeps what the machine says, up to its last word.
type console struct {
	text  bytes.Buffer
	ended func()
}

func (c *console) Write(p []byte) (int, error) {
	n, err := c.text.Write(p)
	last := c.text.Bytes()[max(0, c.text.Len()-n-100):]
	if at := bytes.Index(last, []byte(lastWord)); at >= 0 && bytes.IndexByte(last[at:], '\n') >= 0 {
		c.ended()
	}
	return n, err
}

// lastWord and the status of what ran the suites are a line on the console when
// that has ended, by itself or not.
const lastWord = "VM-END "

// verdict is how a suite ended in the machine.
type verdict struct {
	status int
	output string
}

// tests tells of each test of the suite how it ended, and all that those said
// which did not pass.
func (v verdict) tests(t *testing.T) (ends, failed string) {
	t.Helper()
	cmd := exec.Command("go", "tool", "test2json", "-t")
	cmd.Stdin = strings.NewReader(v.output)
	events, err := cmd.Output()
	if err != nil {
		t.Fatalf("test2json: %v", err)
	}
	said := make(map[string]*strings.Builder)
	var end, fail strings.Builder
	for dec := json.NewDecoder(bytes.NewReader(events)); dec.More(); {
		var e struct {
			Action, Test, Output string
			Elapsed              float64
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("test2json: %v", err)
		}
		if said[e.Test] == nil {
			said[e.Test] = new(strings.Builder)
		}
		switch e.Action {
		case "output":
			said[e.Test].WriteString(e.Output)
		case "fail":
			fail.WriteString(said[e.Test].String())
			fallthrough
		case "pass", "skip":
			if e.Test == "" {
				e.Test = "all"
			}
			fmt.Fprintf(&end, "%s %s (%.1f s)\n", e.Action, e.Test, e.Elapsed)
		}
	}
	return end.String(), fail.String()
}

// read takes the console apart: the suites that ended, and how the machine did,
// if it did.
func read(t *testing.T, console *bytes.Buffer, n int) (out []verdict, end string) {
	t.Helper()
	var since strings.Builder
	sc := bufio.NewScanner(bytes.NewReader(console.Bytes()))
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		line := strings.TrimSuffix(sc.Text(), "\r")
		if rest, ok := strings.CutPrefix(line, fmt.Sprintf("VM-SUITE %d ENDED ", len(out))); ok && len(out) < n {
			status, err := strconv.Atoi(rest)
			if err != nil {
				t.Fatalf("console: %q", line)
			}
			out = append(out, verdict{status, since.String()})
			since.Reset()
			continue
		}
		if status, ok := strings.CutPrefix(line, lastWord); ok {
			return out, "ended with status " + status
		}
		since.WriteString(line + "\n")
	}
	return out, ""
}
