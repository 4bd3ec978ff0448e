package validation

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// quick are the programs of which make test is sure: quick ones, which say that
// every single thing is as it should be.
var quick = []string{"create", "default", "linux_ns_itype", "process_user", "root_readonly_true"}

// programTimeout bounds one program with one runtime.
const programTimeout = 3 * time.Minute

// outcome is what a program of the suite said of a runtime.
type outcome struct {
	ok, skipped int
	failed      []string // what is not ok
	trouble     string   // how the program ended, if not well
}

// verdict tells whether the program has come to judge anything.
func (o outcome) verdict() bool { return o.ok+o.skipped+len(o.failed) > 0 }

func (o outcome) good() bool { return o.verdict() && len(o.failed) == 0 && o.trouble == "" }

func (o outcome) String() string {
	var parts []string
	add := func(n int, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	add(o.ok, "ok")
	add(len(o.failed), "**not ok**")
	add(o.skipped, "skipped")
	if !o.verdict() {
		parts = append(parts, "no verdict")
	}
	if o.trouble != "" {
		parts = append(parts, o.trouble)
	}
	return strings.Join(parts, ", ")
}

// suite is the built programs, and the runtimes they judge.
type suite struct {
	dir     string // see scripts/validation-suite.sh
	self    string
	keepers string // the state of our own runtime
}

func newSuite(t *testing.T, programs ...string) *suite {
	t.Helper()
	build := exec.Command("../../scripts/validation-suite.sh", programs...)
	build.Stderr = os.Stderr
	if _, err := os.Stat(carried); err == nil {
		build = exec.Command("realpath", carried)
	}
	dir, err := build.Output()
	if err != nil {
		t.Fatalf("build the suite: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{dir: strings.TrimSpace(string(dir)), self: self, keepers: t.TempDir()}
	before := suiteGroups(t)
	t.Cleanup(func() {
		s.endKeepers(t)
		for _, dir := range suiteGroups(t) {
			if !slices.Contains(before, dir) {
				removeGroups(t, dir)
			}
		}
	})
	return s
}

// suiteGroups are the control groups that programs of the suite make and leave
// behind: their names are fixed.
func suiteGroups(t *testing.T) (found []string) {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(own)) {
		_, path, _ := strings.Cut(strings.TrimSpace(line), ":/") // cgroups(7)
		for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			for _, name := range []string{"testdir", "cgrouptest"} {
				for _, parent := range []string{"", path} {
					dirs, err := filepath.Glob(filepath.Join(top, parent, name))
					if err != nil {
						t.Fatal(err)
					}
					found = append(found, dirs...)
				}
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// removeGroups removes a control group and those below it.
func removeGroups(t *testing.T, top string) {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}

// carried is the suite with runc, in a virtual machine that builds nothing; see
// package vmtest.
const carried = "carried"

// peerRunc returns runc of our libcontainer's version.
func peerRunc(t *testing.T) string {
	t.Helper()
	if path, err := filepath.Abs(carried + "/bin/runc"); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	build := exec.Command("../../scripts/peer-runc.sh")
	build.Stderr = os.Stderr
	path, err := build.Output()
	if err != nil {
		t.Fatalf("build runc: %v", err)
	}
	return strings.TrimSpace(string(path))
}

// endKeepers ends the containers that programs have left behind.
func (s *suite) endKeepers(t *testing.T) {
	sockets, err := filepath.Glob(socketPath(s.keepers, "*"))
	if err != nil {
		t.Error(err)
	}
	for _, path := range sockets {
		id := strings.TrimSuffix(filepath.Base(path), ".socket")
		if _, err := ask(s.keepers, id, order{Do: "delete", Force: true}); err != nil {
			// A poststop hook may have failed on purpose, or be gone with its bundle.
			t.Logf("container %s: %v", id, err)
		}
	}
}

// attempts is how often a program that is not content is asked: some of them wait
// for fixed times, which a busy machine exceeds with any runtime.
const attempts = 3

// run lets a program judge a runtime, "" is ours, and returns the best of what it
// says.
func (s *suite) run(t *testing.T, program, runtime string) (best outcome) {
	t.Helper()
	for i := range attempts {
		o := s.runOnce(t, program, runtime)
		if i == 0 || o.betterThan(best) {
			best = o
		}
		if best.good() {
			break
		}
	}
	return best
}

func (o outcome) betterThan(p outcome) bool {
	if (o.trouble == "") != (p.trouble == "") {
		return o.trouble == ""
	}
	return len(o.failed) < len(p.failed) || len(o.failed) == len(p.failed) && o.ok > p.ok
}

func (s *suite) runOnce(t *testing.T, program, runtime string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.dir, "bin", program))
	cmd.Dir = filepath.Join(s.dir, "source")
	// Some of the containers have no mount namespace of their own, and some
	// programs do not clean up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for containers with other user ids
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	if runtime == "" {
		cmd.Env = append(cmd.Env, "RUNTIME="+s.self, stateEnv+"="+s.keepers)
	} else {
		cmd.Env = append(cmd.Env, "RUNTIME="+runtime)
	}
	// Files, so that a container left behind keeps nobody waiting.
	var files [2]*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(t.TempDir(), "output"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	err := cmd.Run()
	var text [2][]byte
	for i, f := range files {
		var readErr error
		if text[i], readErr = os.ReadFile(f.Name()); readErr != nil {
			t.Fatal(readErr)
		}
	}
	o := parseTAP(text[0])
	if err != nil {
		o.trouble = err.Error()
		if line := lastLine(text[1]); line != "" {
			o.trouble += ": " + line
		}
	} else if !o.verdict() {
		o.trouble = lastLine(text[1])
	}
	return o
}

var (
	result = regexp.MustCompile(`^(not )?ok [0-9]+( -)?( (.*))?$`)
	skip   = regexp.MustCompile(`(?i)# skip`)
	// odd is what differs from run to run.
	odd = regexp.MustCompile(`/[^ "]*/ocitest[0-9]+|[0-9a-f]{8}-[0-9a-f-]{27}|time="[^"]*" level=error msg=`)
)

// parseTAP reads the Test Anything Protocol (testanything.org).
func parseTAP(text []byte) (o outcome) {
	for line := range strings.Lines(string(text)) {
		m := result.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case m == nil:
		case skip.MatchString(line):
			o.skipped++
		case m[1] != "":
			o.failed = append(o.failed, odd.ReplaceAllString(m[4], "…"))
		default:
			o.ok++
		}
	}
	return o
}

// lastLine is the last line that says something.
func lastLine(text []byte) string {
	last := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(odd.ReplaceAllString(line, "…"))
		if line != "" && !strings.HasPrefix(line, "exit status") && !strings.HasPrefix(line, "Clean:") && !strings.HasPrefix(line, "Refer to:") {
			last = line
		}
	}
	if len(last) > 200 {
		last = last[:200] + "…"
	}
	return last
}

// The short form: what was good stays good.
func TestQuick(t *testing.T) {
	s := newSuite(t, quick...)
	for _, program := range quick {
		if o := s.run(t, program, ""); !o.good() {
			t.Errorf("%s: %v: %q", program, o, o.failed)
		}
	}
}

// The whole suite with both runtimes, program by program; "make validation" sets
// the variable, to where the table is to be written to.
func TestSuite(t *testing.T) {
	report := os.Getenv("CRUNCH_RUN_VALIDATION_REPORT")
	if report == "" {
		t.Skip("make validation runs the whole suite")
	}
	s := newSuite(t)
	runc := peerRunc(t)
	programs, err := os.ReadDir(filepath.Join(s.dir, "source/validation"))
	if err != nil {
		t.Fatal(err)
	}
	var table table
	for _, p := range programs {
		if !p.IsDir() || p.Name() == "util" {
			continue
		}
		row := row{program: p.Name(), ours: s.run(t, p.Name(), ""), runc: s.run(t, p.Name(), runc)}
		t.Logf("%s: ours: %v %q; runc: %v %q", row.program, row.ours, row.ours.failed, row.runc, row.runc.failed)
		table = append(table, row)
		if _, known := explained[row.program]; !known && !(row.ours.good() && row.runc.good()) {
			t.Errorf("%s: not explained: see explanations_test.go", row.program)
		}
		if !row.same() && !slices.Contains(different, row.program) {
			t.Errorf("%s: ours: %v %q; runc: %v %q", row.program, row.ours, row.ours.failed, row.runc, row.runc.failed)
		}
	}
	var text bytes.Buffer
	if err := table.write(&text); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(report, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What this machine may lack the capabilities for, in a virtual machine that has all
// of them ("make test-vm"); default is there to see that the others can be believed.
func TestInMachine(t *testing.T) {
	if _, err := os.Stat(carried); err != nil {
		t.Skip("make test-vm runs this in a virtual machine")
	}
	s, runc := newSuite(t), peerRunc(t)
	for _, program := range []string{"default", "process_capabilities"} {
		ours, theirs := s.run(t, program, ""), s.run(t, program, runc)
		t.Logf("%s: ours: %v %q; runc: %v %q", program, ours, ours.failed, theirs, theirs.failed)
		if !ours.good() || !(row{ours: ours, runc: theirs}).same() {
			t.Errorf("%s: something is not well, or not the same", program)
		}
	}
}

// The tests of the tests: a program that says nothing is not good.
func TestParseTAP(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "no verdict",
		"TAP version 13\nok 1 - a\n1..1\n":  "1 ok",
		"ok 1 - a\nnot ok 2 - b\n":          "1 ok, 1 **not ok**",
		"ok 1 # SKIP no AppArmor\n":         "1 skipped",
		"ok 1 - x # SKIP no AppArmor\nok 2": "1 ok, 1 skipped",
	} {
		if got := parseTAP([]byte(text)).String(); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
