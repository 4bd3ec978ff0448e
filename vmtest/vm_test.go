package vmtest

import (
	"os"
	"strings"
	"testing"
	"time"
)

// long is set by "make test-vm".
var long = os.Getenv("VMTEST_LONG") != ""

// suites are what runs in each machine. The short form shows that a container
// starts, is limited, accounted for and gone again.
func suites() []suite {
	if only := strings.Fields(os.Getenv("VMTEST_ONLY")); len(only) > 0 { // "package:tests package:tests"
		var out []suite
		for _, one := range only {
			pkg, run, _ := strings.Cut(one, ":")
			out = append(out, suite{pkg: pkg, run: run})
		}
		return out
	}
	if !long {
		return []suite{
			{pkg: "cgroups", run: "TestVacate|TestOOMKillsAndStats|TestKillForkingGroup|TestFeatures"},
			{pkg: "imagestore", run: "TestUnpackMountLookup|TestManyLayers|Overlay"},
			{pkg: "oci", run: "TestStreamsAndExit|TestLimitsAreSet|TestOOMIsReported"},
			{pkg: "supervisor/stats/kernel", run: "."},
			{pkg: "cmd/crunch-run", run: "TestSystemdScope/stop,_with_inputs"},
		}
	}
	return []suite{
		{pkg: "cgroups", run: "."},
		{pkg: "imagestore", run: "."},
		// There is no Go in the machine to build the program of this test with.
		{pkg: "oci", run: ".", skip: "^TestFilterIsTheSame$"},
		{pkg: "supervisor/stats/kernel", run: "."},
		{pkg: "oci/validation", run: "TestInMachine"},
		{pkg: "cmd/crunch-run", run: "."},
	}
}

func TestUnifiedWithMinimalInit(t *testing.T) { testIn(t, minimal, suites()) }

func TestSELinux(t *testing.T) {
	all := []suite{{pkg: "oci", run: "SELinux"}, {pkg: "cmd/crunch-run", run: "SELinux"}}
	if os.Getenv("VMTEST_ONLY") != "" {
		all = suites()
	} else if !long {
		t.Skip("one more boot takes the emulator too long for every day: make test-vm")
	}
	testIn(t, selinux, all)
}

func TestUnifiedWithSystemd(t *testing.T) {
	if !long && os.Getenv("VMTEST_ONLY") == "" {
		t.Skip("booting systemd takes the emulator too long for every day: make test-vm")
	}
	testIn(t, systemd, suites())
}

func testIn(t *testing.T, sys initSystem, all []suite) {
	if os.Geteuid() != 0 {
		t.Skip("the machine's disk is made by root only")
	}
	patience := 4 * time.Minute
	if long {
		patience = time.Hour
	}
	for i, v := range newRig(t, all).run(t, sys, all, patience) {
		if v.status != 0 {
			t.Errorf("%s: exit status %d\n%s", all[i].pkg, v.status, tail(v.output, 20_000))
		} else if testing.Verbose() {
			t.Logf("%s: %s", all[i].pkg, tail(v.output, 2000))
		}
	}
}
