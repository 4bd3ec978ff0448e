package vmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// endToEnd is the package with the tests of the whole program.
const endToEnd = "cmd/crunch-run"

// elsewhere names the end-to-end tests that do not run in the machine. All others
// do, also new ones: a test belongs here only if neither the kernel nor PID 1 can
// change what it shows, or if it is about something the machine does not have.
var elsewhere = []struct{ why, tests string }{
	{"what the API server, Keep and the gateway are told, and what is made of their answers, is the same on every kernel", `
		TestStdinConfig TestWrongState TestAPIAccess TestStorageClasses TestOtherFlags TestCertificatesForChildren
		TestClusterRestarts TestClusterAwayAtTheEnd TestUnfinishedResults TestFaultsOfRequests TestNumberOfRequests TestCapturedRuns
		TestLostBlock TestKeepBusy TestTokenExpires TestLocalKeepstore TestLocalKeepstoreOnS3 TestKeepMountProjects TestKeepMountDefaultClasses
		TestStopWhileNothingAnswers TestStopWhileKeepCannotBeFound
		TestServices TestShellAccess TestGatewaySecret TestTunnelCut TestLiveLog TestLiveLogWhileSaving TestLiveLogLarge`},
	{"dispatchers see a command line, files and exit codes", `
		TestArgumentVectors TestLockdirVectors TestDispatch TestDispatchChild TestLocalDispatcher TestJobScripts
		TestCloudInstance TestCloudDispatcher TestOneConnection TestLineBreaks`},
	{"what is in an image is the business of package imagestore, and the tools that make images are not on the disk", `
		TestImagesOfEveryTool TestAgainstUmoci TestPodmanBuild TestDebian TestDamagedImages TestDamagedImagesInKeep`},
	{"a machine with cgroup v1 is what these ask for", "TestSlurm TestJobCgroup"},
	{"these read the source tree", "TestSecurityPageNamesTests TestArchitecturePageNamesPackages"},
}

// endToEndBoots divides the tests of package endToEnd: some share a process, so
// that two run at once, and a machine runs some processes, so that what hangs,
// or brings a kernel down, leaves the others alone.
func endToEndBoots(t *testing.T, r *rig) []boot {
	t.Helper()
	const inProcess, inMachine = 8, 3
	var out []boot
	for tests := range slices.Chunk(endToEndTests(t, r), inProcess) {
		if n := len(out); n == 0 || len(out[n-1].suites) == inMachine {
			out = append(out, boot{name: fmt.Sprintf("end to end %d", n+1)})
		}
		last := &out[len(out)-1]
		last.suites = append(last.suites, suite{pkg: endToEnd, run: "^(" + strings.Join(tests, "|") + ")$"})
	}
	return out
}

// endToEndTests are the names of the tests of package endToEnd that run in the
// machine.
func endToEndTests(t *testing.T, r *rig) []string {
	t.Helper()
	cmd := exec.Command("./suite.test", "-test.list", "^Test")
	cmd.Dir = filepath.Join(r.dir, "src", endToEnd)
	cmd.Env = append(os.Environ(), "VMTEST_PROGRAMS="+filepath.Join(r.dir, "src/programs"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	tests := strings.Fields(string(out))
	for _, group := range elsewhere {
		for _, name := range strings.Fields(group.tests) {
			i := slices.Index(tests, name)
			if i < 0 {
				t.Fatalf("%s has no %s, which is not to run in the machine because %s", endToEnd, name, group.why)
			}
			tests = slices.Delete(tests, i, i+1)
		}
	}
	return tests
}
