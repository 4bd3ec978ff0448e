package oci_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/oci"
)

// needAppArmor skips on kernels without it. Debian's has it: make test-vm.
func needAppArmor(t testing.TB) {
	t.Helper()
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(on), "Y") {
		if os.Getenv("VMTEST_MACHINE") != "" {
			t.Fatal("AppArmor is off in the machine that has it")
		}
		t.Skip("this kernel has no AppArmor")
	}
}

// loadProfile loads an AppArmor profile that allows everything but what rules deny,
// and takes it away again with the test.
func loadProfile(t testing.TB, rules string) (name string) {
	t.Helper()
	name = fmt.Sprintf("crunch-oci-test-%d", os.Getpid())
	file := filepath.Join(t.TempDir(), "profile")
	write(t, file, fmt.Sprintf("profile %s flags=(attach_disconnected,mediate_deleted) {\n network,\n capability,\n file,\n signal,\n ptrace,\n unix,\n%s\n}\n", name, rules))
	parse := func(action string) {
		t.Helper()
		if out, err := exec.Command("apparmor_parser", action, file).CombinedOutput(); err != nil {
			t.Fatalf("apparmor_parser %s: %v\n%s", action, err, out)
		}
	}
	parse("-Kr")
	t.Cleanup(func() { parse("-R") })
	return name
}

// underAppArmor gives the container Docker's profile.
func underAppArmor(t testing.TB, r *oci.Request) {
	needAppArmor(t)
	profile, err := oci.AppArmor{}.Profile(oci.AppArmorAuto)
	must(t, err)
	r.Confinement.AppArmorProfile = profile
}

// The command, and those that enter the container, are under the profile: what it
// denies is denied to root.
func TestAppArmorConfines(t *testing.T) {
	needAppArmor(t)
	profile := loadProfile(t, "deny /work/denied w,\ndeny /etc/passwd r,")
	const script = `cat /proc/self/attr/current; echo x >/work/allowed && cat /work/allowed; (echo x >/work/denied) 2>/dev/null || echo "not written"; cat /etc/passwd 2>&1`
	want := profile + " (enforce)\nx\nnot written\ncat: can't open '/etc/passwd': Permission denied\n"
	for name, edit := range map[string]func(*oci.Request){
		"plain": func(*oci.Request) {}, "init": withInit, "user namespace": mapped(t), "no new privileges": func(r *oci.Request) { r.NoNewPrivileges = true },
		"no filter": func(r *oci.Request) { r.NoSeccomp = true },
	} {
		t.Run(name, func(t *testing.T) {
			under := func(r *oci.Request) { r.Confinement.AppArmorProfile = profile }
			b := newBox(t, edit, under)
			if r := execIn(t, b.ctr, sh(script), ""); r.stdout != want {
				t.Errorf("exec: got %q, want %q; %s", r.stdout, want, r.stderr)
			}
			req := newRequest(t, newID(), script)
			edit(&req)
			under(&req)
			if b, _ := run(t, req, nil); b.stdout.String() != want {
				t.Errorf("got %q, want %q; %s", b.stdout, want, b.stderr)
			}
		})
	}
}

// Where there is AppArmor, containers get Docker's profile without anybody having
// loaded it.
func TestAppArmorDefault(t *testing.T) {
	needAppArmor(t)
	profile, err := oci.AppArmor{}.Profile(oci.AppArmorAuto)
	must(t, err)
	for name, edit := range map[string]func(*oci.Request){"plain": func(*oci.Request) {}, "init": withInit, "user namespace": mapped(t)} {
		t.Run(name, func(t *testing.T) {
			got := runScript(t, "cat /proc/self/attr/current; sh -c 'kill -TERM $$' ; echo $?; ps >/dev/null && echo seen", edit, func(r *oci.Request) { r.Confinement.AppArmorProfile = profile })
			if want := profile + " (enforce)\n143\nseen\n"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}
