package vmtest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// long is set by "make test-vm".
var long = os.Getenv("VMTEST_LONG") != ""

// only chooses tests by hand: "package:tests package:tests".
var only = strings.Fields(os.Getenv("VMTEST_ONLY"))

func TestUnifiedWithMinimalInit(t *testing.T) {
	// The short form shows that a container starts, is limited, accounted for and
	// gone again.
	testIn(t, minimal, []suite{
		{pkg: "cgroups", run: "TestVacate|TestOOMKillsAndStats|TestKillForkingGroup"},
		{pkg: "imagestore", run: "TestUnpackMountLookup"},
		{pkg: "oci", run: "TestStreamsAndExit|TestLimitsAreSet|TestOOMIsReported"},
		{pkg: "supervisor/stats/kernel", run: "TestThisMachine"},
		{pkg: endToEnd, run: "TestOutOfMemory/a_child"},
	})
}

func TestUnifiedWithSystemd(t *testing.T) {
	if !long && len(only) == 0 {
		t.Skip("booting systemd takes the emulator too long for every day: make test-vm")
	}
	testIn(t, systemd, nil)
}

func TestSELinux(t *testing.T) {
	if !long && len(only) == 0 {
		t.Skip("one more boot takes the emulator too long for every day: make test-vm")
	}
	suites := []suite{{pkg: "oci", run: "SELinux|TestContainerDiesWithItsCreator/under_SELinux"}, {pkg: endToEnd, run: "SELinux"}}
	if len(only) == 0 {
		asRoot(t)
		testBoots(t, newRig(t, packages(suites)), selinux, []boot{{"all", suites}})
		return
	}
	testIn(t, selinux, nil)
}

func asRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the machine's disk is made by root only")
	}
}

// testIn runs what is asked for by hand, or all, or the short form.
func testIn(t *testing.T, sys initSystem, short []suite) {
	asRoot(t)
	var chosen []suite
	for _, one := range only {
		pkg, run, _ := strings.Cut(one, ":")
		chosen = append(chosen, suite{pkg: pkg, run: run})
	}
	switch {
	case len(chosen) > 0:
		testBoots(t, newRig(t, packages(chosen)), sys, []boot{{"chosen", chosen}})
	case long:
		boots := []boot{
			// The machine has neither Go nor the tools that make images.
			{"cgroups and images", []suite{{pkg: "cgroups", run: "."}, {pkg: "imagestore", run: ".", skip: "^(TestCorpus|TestLayersOverLayers)$"}, {pkg: "supervisor/stats/kernel", run: "."}}},
			{"oci", []suite{{pkg: "oci", run: ".", skip: "^(TestFilterIsTheSame|TestExecSiblings)$"}, {pkg: "oci/validation", run: "TestInMachine"}}},
		}
		var all []suite
		for _, b := range boots {
			all = append(all, b.suites...)
		}
		r := newRig(t, append(packages(all), endToEnd))
		testBoots(t, r, sys, append(boots, endToEndBoots(t, r)...))
	default:
		testBoots(t, newRig(t, packages(short)), sys, []boot{{"short", short}})
	}
}

func packages(suites []suite) []string {
	var out []string
	for _, s := range suites {
		if !slices.Contains(out, s.pkg) {
			out = append(out, s.pkg)
		}
	}
	return out
}

// testBoots starts a machine for each of the boots, one after the other.
func testBoots(t *testing.T, r *rig, sys initSystem, boots []boot) {
	patience := 2 * time.Minute // with a suite
	if long || len(only) > 0 {
		patience = 40 * time.Minute
	}
	for _, b := range boots {
		t.Run(b.name, func(t *testing.T) {
			for i, v := range r.run(t, sys, b.suites, patience) {
				passed, failed := v.tests(t)
				name := fmt.Sprintf("%s %s", b.suites[i].pkg, b.suites[i].run)
				if v.status != 0 {
					t.Errorf("%s: exit status %d\n%s", name, v.status, tail(failed, 40_000))
				}
				if testing.Verbose() {
					t.Logf("%s:\n%s", name, passed)
				}
			}
		})
	}
}
