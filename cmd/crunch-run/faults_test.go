package main_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"crunch-oci/arvados"
)

// allFaults makes the tests below try every fault at every point, rather than
// a few ("make faults"). It needs the program with the tag faults.
var allFaults = os.Getenv("CRUNCH_RUN_TEST_FAULTS") != ""

// finalTimeout is FinalTimeout where the API may stay away for ever: 12 s in the
// program with the tag faults.
const faultsFinalTimeout = "CRUNCH_RUN_FINAL_TIMEOUT=20m"

// A fault sweep lets one run after another meet trouble at one point. The points
// are what a run without trouble did.
type faultSweep struct {
	cluster *cluster
	image   string
	input   attrs
	points  []string // in the order in which they came

	mu    sync.Mutex
	cells map[faultCell]faultOutcome
}

type faultCell struct{ point, fault string }

// faultOutcome is what a cell of the table shows.
type faultOutcome struct {
	text string
	bad  bool
}

func newFaultSweep(t *testing.T) *faultSweep {
	c := startCluster(t, newNode(t))
	return &faultSweep{
		cluster: c, image: c.storeTools(t), input: withInput(c.store(t, map[string][]byte{"a.txt": []byte("A\n")})),
		cells: map[faultCell]faultOutcome{},
	}
}

func (s *faultSweep) submit(t *testing.T) (uuid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster.submit(t, s.image, sh("cat /in/a.txt && echo data >data.txt"), s.input)
}

// faulted is a run that has met trouble.
type faulted struct {
	uuid    string
	process *process
	killed  bool
	reached bool // false: it has ended without coming to the point
	// io allows the user's program to see an I/O error.
	io bool
	// states are those that the record may be left in; nil: see judge.
	states []string
}

// try runs f as a subtest, and what it returns is judged.
func (s *faultSweep) try(t *testing.T, cell faultCell, f func(*testing.T, *node) faulted) {
	t.Run(cell.point+"/"+cell.fault, func(t *testing.T) {
		t.Parallel()
		n := newNode(t)
		text := "no end"
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.cells[cell] = faultOutcome{text, t.Failed()}
		}()
		met := f(t, n)
		text = s.judge(t, n, met)
		if !allFaults && !met.reached {
			t.Error("no run comes to this point any more")
		}
	})
}

// judge checks what holds whatever the fault was: the record's state is one that
// the table of states allows and that goes with the exit code; a Complete
// container has its output and its log; one that is not says why; the node is
// clean after one --list or the next start. It returns what the table shows.
func (s *faultSweep) judge(t *testing.T, n *node, f faulted) string {
	n.prefix = nil // from here on nothing fails
	f.process.wait(t)
	stderr := f.process.stderr.String()
	if strings.Contains(stderr, "panic:") || strings.Contains(stderr, "fatal error:") || strings.Contains(stderr, "DATA RACE") {
		t.Error("the supervisor panics")
	}
	s.mu.Lock()
	record := s.cluster.container(t, f.uuid)
	s.mu.Unlock()
	text := record.State
	if record.ExitCode != nil && *record.ExitCode != 0 {
		text += fmt.Sprintf(", exit code %d", *record.ExitCode)
	}
	if !f.reached && !f.killed {
		text += ", not reached"
	}
	switch {
	case f.killed:
		n.waitDead(t)
		text = s.judgeKilled(t, n, record, text)
	default:
		s.mu.Lock()
		s.judgeRecord(t, record, f)
		s.mu.Unlock()
		text += s.judgeNode(t, n, record)
	}
	return text
}

func (s *faultSweep) judgeRecord(t *testing.T, record arvados.Container, f faulted) {
	code, stderr := f.process.code, f.process.stderr.String()
	if f.states != nil && f.reached && !slices.Contains(f.states, record.State) {
		t.Errorf("state %s, want one of %v", record.State, f.states)
	}
	if !f.reached && record.State != arvados.StateComplete {
		t.Errorf("state %s without any trouble", record.State)
	}
	if want := 1; record.State == arvados.StateComplete && code != 0 || record.State != arvados.StateComplete && code != want {
		t.Errorf("exit code %d with state %s", code, record.State)
	}
	ran := false
	switch record.State {
	case arvados.StateComplete:
		ran = true
		if record.ExitCode == nil || *record.ExitCode != 0 {
			if !f.io || record.RuntimeStatus["warning"] == nil {
				t.Errorf("exit code %v, runtime status %v", record.ExitCode, record.RuntimeStatus)
			}
			break
		}
		if got := s.cluster.files(t, record.Output); !maps.Equal(got, map[string]string{"data.txt": "data\n"}) {
			t.Errorf("output %q", got)
		}
		if got := stamped(t, s.cluster.log(t, record, "stdout.txt")); got != "A\n" {
			t.Errorf("stdout.txt %q", got)
		}
		if log := s.cluster.log(t, record, "crunch-run.txt"); !strings.HasSuffix(log, " Complete\n") {
			t.Errorf("crunch-run.txt does not end with the state:\n%s", log)
		}
	case arvados.StateQueued, arvados.StateCancelled:
		if !strings.Contains(stderr, "error in ") {
			t.Errorf("stderr does not say why")
		}
		switch {
		case record.Log == "" && !strings.Contains(stderr, "error saving log collection: ") && !strings.Contains(stderr, "error in CommitLogs: "):
			t.Error("there is no log, and nothing says why")
		case record.Log != "" && !strings.Contains(stderr, "error in CommitLogs: "): // else it is an earlier one
			if log := s.cluster.log(t, record, "crunch-run.txt"); !strings.Contains(log, "error in ") {
				t.Errorf("the log does not say why:\n%s", log)
			}
		}
		ran = record.State == arvados.StateCancelled
	case arvados.StateLocked:
		if strings.TrimSpace(stderr) == "" {
			t.Error("stderr does not say why")
		}
	case arvados.StateRunning:
		ran = true
		if !strings.Contains(stderr, "error in UpdateContainerFinal: ") {
			t.Error("state Running, but there was an API to say otherwise to")
		} else if !strings.Contains(stderr, "the results are kept in ") {
			t.Error("the results are not kept")
		}
	default:
		t.Errorf("state %s", record.State)
	}
	if !ran && strings.Contains(stderr, "Waiting for container to finish") {
		t.Errorf("user code ran, and the state is %s", record.State)
	}
	s.cluster.mustHideTokens(t, record, f.process)
}

// judgeNode checks that the node is clean, at once or after one --list.
func (s *faultSweep) judgeNode(t *testing.T, n *node, record arvados.Container) (note string) {
	if err := os.Remove(filepath.Join(n.locks(), "crunch-run-broken")); err == nil {
		note += ", node broken"
		if record.State == arvados.StateComplete {
			t.Error("the node is said to be broken, and the container is Complete")
		}
	}
	note += s.keptResult(t, n, record)
	left, err := n.leftovers()
	if err == nil && len(left) == 0 {
		return note
	}
	if res := n.run(t, "--list"); res.code != 0 {
		t.Errorf("--list: %+v", res)
	}
	if left, err = n.leftovers(); err == nil && len(left) == 0 {
		return note + ", clean after --list"
	}
	s.nextStart(t, n, left, s.submit(t))
	return note + ", clean after next start"
}

// nextStart runs a container after another's trouble. What --list has left for it
// is only what is no use to anyone: unpacked layers, and the group that all
// containers of the node have in common.
func (s *faultSweep) nextStart(t *testing.T, n *node, left []string, uuid string) {
	for _, l := range left {
		if !strings.HasPrefix(l, "file "+n.store()) && !(strings.HasPrefix(l, "cgroup ") && strings.HasSuffix(l, "/"+n.cgroup)) {
			t.Errorf("left behind after --list: %s", l)
		}
	}
	again := s.cluster.supervise(t, n, uuid)
	again.wait(t)
	n.mustBeClean(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.judgeRecord(t, s.cluster.container(t, uuid), faulted{uuid: uuid, process: again})
}

// keptResult tells whether the node keeps the results, which only makes sense if
// the API may not have them, and lets an operator deliver them.
func (s *faultSweep) keptResult(t *testing.T, n *node, record arvados.Container) string {
	kept, err := filepath.Glob(filepath.Join(n.unfinished(), "*.json"))
	if err != nil || len(kept) == 0 {
		if left, _ := filepath.Glob(filepath.Join(n.unfinished(), ".*")); len(left) > 0 {
			_ = n.run(t, "unfinished", "drop", "--all")
		}
		return ""
	}
	deliver := n.start(t, run{args: []string{"unfinished", "deliver", "--all"}, env: s.cluster.supervisorEnv()})
	if code := deliver.wait(t); code != 0 {
		t.Errorf("unfinished deliver: exit code %d: %s", code, deliver.stderr.String())
	}
	if record.State != arvados.StateRunning {
		return ", result kept"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	record = s.cluster.container(t, record.UUID)
	if record.State != arvados.StateComplete && record.State != arvados.StateCancelled {
		t.Errorf("state %s after delivery", record.State)
	}
	if record.State == arvados.StateComplete {
		if got := s.cluster.files(t, record.Output); !maps.Equal(got, map[string]string{"data.txt": "data\n"}) {
			t.Errorf("output %q", got)
		}
	}
	return ", delivered as " + record.State
}

// judgeKilled is for a supervisor that was killed: the record says no more than
// was true, and the next start finds or makes a clean node.
func (s *faultSweep) judgeKilled(t *testing.T, n *node, record arvados.Container, text string) string {
	switch record.State {
	case arvados.StateLocked, arvados.StateRunning, arvados.StateComplete:
	default:
		t.Errorf("state %s", record.State)
	}
	text += s.keptResult(t, n, record)
	if res := n.run(t, "--list"); res.code != 0 {
		t.Errorf("--list: %+v", res)
	}
	left, err := n.leftovers()
	if err != nil {
		t.Error(err)
	}
	if len(left) > 0 {
		text += ", clean after next start"
	}
	if len(left) == 0 && record.State != arvados.StateLocked {
		return text
	}
	uuid := record.UUID
	if record.State != arvados.StateLocked {
		uuid = s.submit(t)
	}
	s.nextStart(t, n, left, uuid)
	return text
}

// report writes the table into doc/reliability.md, between its marks.
func (s *faultSweep) report(t *testing.T, name string, faults []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "| Point | %s |\n|---|%s\n", strings.Join(faults, " | "), strings.Repeat("---|", len(faults)))
	tried, bad := 0, 0
	for _, point := range s.points {
		fmt.Fprintf(&b, "| %s |", strings.ReplaceAll(point, "|", `\|`))
		for _, fault := range faults {
			o, ok := s.cells[faultCell{point, fault}]
			if ok {
				tried++
			}
			if o.bad {
				o.text = "**" + o.text + "**"
				bad++
			}
			fmt.Fprintf(&b, " %s |", o.text)
		}
		b.WriteString("\n")
	}
	t.Logf("%s: %d points, %d cells, %d bad", name, len(s.points), tried, bad)
	path := os.Getenv("CRUNCH_RUN_TEST_FAULTS_REPORT")
	if path == "" {
		return
	}
	page := readFile(t, path)
	section := regexp.MustCompile(`(?s)(<!-- begin ` + name + ` -->\n).*(<!-- end ` + name + ` -->)`)
	if !section.MatchString(page) {
		t.Fatalf("%s has no section %s", path, name)
	}
	text := fmt.Sprintf("%d points, %d cells, %d of them not as they should be.\n\n%s", len(s.points), tried, bad, b.String())
	page = section.ReplaceAllStringFunc(page, func(old string) string {
		m := section.FindStringSubmatch(old)
		return m[1] + text + m[2]
	})
	writeFile(t, path, []byte(page))
}
