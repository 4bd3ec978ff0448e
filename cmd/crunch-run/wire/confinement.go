package wire

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crunch-oci/internal/idmap"
	"crunch-oci/oci"
	"crunch-oci/supervisor"
	"crunch-oci/supervisor/config"
)

// limits are what this node's settings say about every container. warn is told
// what the settings leave to the node and the node lacks.
func (j Job) limits(warn func(format string, args ...any)) (supervisor.Limits, error) {
	c, err := confinement(j.Site, warn)
	return supervisor.Limits{
		PIDs: j.pidsLimit(), IgnoreRAM: !j.Flags.EnableMemoryLimit, NoSeccomp: !j.Site.Seccomp, StopGrace: j.Site.StopGrace,
		NoNewPrivileges: j.Site.NoNewPrivileges, Shm: j.Site.ShmSize, Confinement: c,
	}, err
}

// confinement translates the site's settings for containers.
func confinement(s config.Site, warn func(format string, args ...any)) (oci.Confinement, error) {
	umask := s.Umask
	c := oci.Confinement{Init: s.Init, Umask: &umask, SELinuxLabel: s.SELinuxLabel, SELinuxMountLabel: s.SELinuxMountLabel}
	c.IDs = idmap.Range{First: s.UserNamespaceFirst, Count: s.UserNamespaceCount}
	for _, l := range s.Ulimits {
		c.Ulimits = append(c.Ulimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(l.Name), Soft: l.Soft, Hard: l.Hard})
	}
	err := oci.CheckRlimits(c.Ulimits)
	if err != nil {
		return c, fmt.Errorf("setting ulimits: %w", err)
	}
	for name, label := range map[string]string{"selinux-label": s.SELinuxLabel, "selinux-mount-label": s.SELinuxMountLabel} {
		if label == "" {
			continue
		}
		if err := oci.CheckLabel(label); err != nil {
			return c, fmt.Errorf("setting %s: %w", name, err)
		}
	}
	c.AppArmorProfile, err = oci.AppArmor{}.Profile(s.AppArmorProfile)
	if err != nil && s.AppArmorProfile == oci.AppArmorAuto {
		warn("warning: containers run without AppArmor profile: %v", err)
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("setting apparmor-profile: %w", err)
	}
	return c, nil
}

// label gives a directory an SELinux label, whose type what is made in it inherits;
// "" leaves it as it is.
func label(dir, label string) error {
	if label == "" {
		return nil
	}
	if err := unix.Lsetxattr(dir, "security.selinux", append([]byte(label), 0), 0); err != nil {
		return fmt.Errorf("setting selinux-mount-label: give %s the label %s (does the node's policy have it?): %w", dir, label, err)
	}
	return nil
}

// idLocks is the directory of the locks of ranges of user ids in that of the run locks.
const idLocks = "crunch-run-ids"

// lendIDs keeps containers from having ids of others, unless the site wants them to
// have the same: also while the setting is changed. first is the range of the first
// of them, remains exists as long as something of this one does.
func (j Job) lendIDs(first idmap.Range, remains string) (*idmap.Lease, error) {
	dir := filepath.Join(j.Site.LockDir, idLocks)
	if n := j.Site.UserNamespaceRanges; n > 0 {
		return first.Take(dir, n, remains)
	}
	return first.Share(dir)
}
