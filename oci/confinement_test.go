package oci_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/oci"
)

// What a site asks for is what the command finds.
func TestSiteConfinement(t *testing.T) {
	mask := uint32(0o077)
	got := runScript(t, "umask; ulimit -Sc; ulimit -Hc; ulimit -Sn; ulimit -Hn; grep NoNewPrivs /proc/self/status; mount | grep -o 'shm .*size=[0-9]*k' | sed 's/.*size=//'", func(r *oci.Request) {
		var err error
		r.Rlimits, err = oci.HostRlimits()
		must(t, err)
		r.NoNewPrivileges = true
		r.Limits.Shm = 1 << 20
		r.Confinement = oci.Confinement{Umask: &mask, Ulimits: []specRlimit{{Type: "RLIMIT_CORE", Soft: 0, Hard: 4096}, {Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}}
	})
	if want := "0077\n0\n8\n100\n200\nNoNewPrivs:\t1\n1024k\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Commands that enter a container are under the same rules.
func TestSiteConfinementOfExec(t *testing.T) {
	mask := uint32(0o027)
	b := newBox(t, func(q *oci.Request) {
		q.NoNewPrivileges = true
		q.Confinement = oci.Confinement{Umask: &mask, Ulimits: []specRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}}
	})
	r := execIn(t, b.ctr, sh("umask; ulimit -Sn; grep NoNewPrivs /proc/self/status"), "")
	if want := "0027\n100\nNoNewPrivs:\t1\n"; r.stdout != want {
		t.Errorf("got %q, want %q", r.stdout, want)
	}
}

// Labels are where the runtime looks for them: this kernel knows none, so that it
// is the specification that is looked at, and that they are not ignored.
func TestLabelsAreInTheSpecification(t *testing.T) {
	req := newRequest(t, newID(), "true")
	req.Confinement = oci.Confinement{AppArmorProfile: "lab-default", SELinuxLabel: "system_u:system_r:container_t:s0:c1,c2", SELinuxMountLabel: "system_u:object_r:container_file_t:s0:c1,c2"}
	spec, err := oci.NewSpec(req)
	must(t, err)
	if p := spec.Process; p.ApparmorProfile != "lab-default" || p.SelinuxLabel != "system_u:system_r:container_t:s0:c1,c2" || spec.Linux.MountLabel != "system_u:object_r:container_file_t:s0:c1,c2" {
		t.Errorf("%q, %q, %q", p.ApparmorProfile, p.SelinuxLabel, spec.Linux.MountLabel)
	}
	for _, c := range []oci.Confinement{{AppArmorProfile: "lab-default"}, {SELinuxLabel: "u:r:t:s0"}} {
		if _, err := os.Stat("/sys/kernel/security/apparmor"); err == nil && c.AppArmorProfile != "" {
			continue
		}
		if _, err := os.Stat("/sys/fs/selinux"); err == nil && c.SELinuxLabel != "" {
			continue
		}
		req.Confinement = c
		if b, err := create(t, req, nil); err == nil {
			err = b.ctr.Start(t.Context())
			t.Errorf("a label that this node cannot give is ignored: %+v, %v", c, err)
		}
	}
}

func TestAppArmorProfile(t *testing.T) {
	errInstall := errors.New("no parser")
	for _, tc := range []struct {
		name, enabled, profiles, choice string
		install                         error
		want, installed, err            string
	}{
		{name: "no AppArmor", choice: "auto"},
		{name: "off", enabled: "N\n", choice: "auto"},
		{name: "Docker's", enabled: "Y\n", profiles: "other (enforce)\ndocker-default (enforce)\n", choice: "auto", want: "docker-default"},
		{name: "ours, loaded", enabled: "Y\n", profiles: "crunch-run-default (enforce)\n", choice: "auto", want: "crunch-run-default"},
		{name: "ours, not loaded", enabled: "Y\n", profiles: "docker-default-x (enforce)\n", choice: "auto", want: "crunch-run-default", installed: "crunch-run-default"},
		{name: "cannot be loaded", enabled: "Y\n", profiles: "x (enforce)\n", choice: "auto", install: errInstall, installed: "crunch-run-default", err: "no parser"},
		{name: "unconfined", enabled: "Y\n", profiles: "docker-default (enforce)\n", choice: "unconfined"},
		{name: "by name", enabled: "Y\n", profiles: "my lab (complain)\n", choice: "my lab", want: "my lab"},
		{name: "by name, not loaded", enabled: "Y\n", profiles: "mylab (enforce)\n", choice: "my", err: `"my" is not loaded`},
		{name: "by name, no AppArmor", choice: "lab", err: "no AppArmor"},
		{name: "no securityfs", enabled: "Y\n", choice: "auto", err: "securityfs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			a := oci.AppArmor{Enabled: filepath.Join(dir, "enabled"), Profiles: filepath.Join(dir, "profiles")}
			if tc.enabled != "" {
				write(t, a.Enabled, tc.enabled)
			}
			if tc.profiles != "" {
				write(t, a.Profiles, tc.profiles)
			}
			installed := ""
			a.Install = func(name string) error { installed = name; return tc.install }
			got, err := a.Profile(tc.choice)
			if got != tc.want || installed != tc.installed || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q, %v, installed %q", got, err, installed)
			}
		})
	}
}
