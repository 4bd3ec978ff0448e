package nodecheck

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"crunch-oci/oci"
	"crunch-oci/supervisor/config"
)

// The levels decide whether a node is fit: a site's wish that cannot be met is a
// failure, a default that cannot be had is none.
func TestLabelsOfTheNode(t *testing.T) {
	for _, tc := range []struct {
		name              string
		site              config.Confinement
		apparmor, enforce string // files of the kernel
		level             Level
		says              string
	}{
		{"nothing", config.Confinement{AppArmorProfile: "auto"}, "", "", Note, "no AppArmor"},
		{"Docker's profile", config.Confinement{AppArmorProfile: "auto"}, "docker-default (enforce)\n", "", OK, "AppArmor profile docker-default"},
		{"profile missing", config.Confinement{AppArmorProfile: "lab"}, "docker-default (enforce)\n", "", Failure, `"lab" is not loaded`},
		{"unconfined", config.Confinement{AppArmorProfile: "unconfined"}, "docker-default (enforce)\n", "", Note, "without AppArmor profile"},
		{"label without SELinux", config.Confinement{AppArmorProfile: "unconfined", SELinuxLabel: "u:r:t:s0"}, "", "", Failure, "no SELinux"},
		{"SELinux without label", config.Confinement{AppArmorProfile: "unconfined"}, "", "1", Note, "label of crunch-run"},
		{"permissive", config.Confinement{AppArmorProfile: "unconfined", SELinuxLabel: "u:r:t:s0"}, "", "0", Warning, "permissive"},
		{"label", config.Confinement{AppArmorProfile: "unconfined", SELinuxLabel: "u:r:t:s0"}, "", "1", OK, "SELinux label u:r:t:s0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			file := func(name, text string) string {
				path := filepath.Join(dir, name)
				if text != "" {
					if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				return path
			}
			file("enforce", tc.enforce)
			enabled := ""
			if tc.apparmor != "" {
				enabled = "Y\n"
			}
			var found []Finding
			c := &checker{mu: new(sync.Mutex), found: &found, Options: Options{
				Site: config.Site{Confinement: tc.site}, SELinuxDir: dir,
				AppArmor: oci.AppArmor{Enabled: file("enabled", enabled), Profiles: file("profiles", tc.apparmor)},
			}}
			appArmor(c)
			selinux(c)
			for _, f := range found {
				if f.Level == tc.level && strings.Contains(f.Text, tc.says) {
					return
				}
			}
			t.Errorf("%+v", found)
		})
	}
}
