package oci

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/profiles/apparmor"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crunch-oci/internal/idmap"
)

// Confinement is what a site may add to, or take from, Docker's defaults. The
// zero value is these.
type Confinement struct {
	// Umask is the command's file mode creation mask; nil is 0022.
	Umask *uint32
	// Ulimits replace those of Request.Rlimits of the same type.
	Ulimits []specs.POSIXRlimit
	// AppArmorProfile is the name of a loaded profile; "" is none. See
	// AppArmorProfile.
	AppArmorProfile string
	// SELinuxLabel is the label of the container's processes, SELinuxMountLabel
	// that of the file systems that are made for it (/dev, /dev/shm, ...); "" is
	// none.
	SELinuxLabel, SELinuxMountLabel string
	// Init makes a small init (package reaper) the first process, and the command
	// its child.
	Init bool
	// IDs are the host's ids of the container's user namespace; the zero value is
	// none. The root directory must belong to them (imagestore.MountMappedRootfs),
	// and what leads to it must be open to the first of them.
	IDs idmap.Range
}

// wantsInit is the annotation of a container with Confinement.Init.
const wantsInit = "crunch-oci.init"

// withConfinement sets what the site asks for.
func withConfinement(c Confinement) Edit {
	return func(spec *specs.Spec) error {
		if c.Umask != nil {
			mask := *c.Umask
			spec.Process.User.Umask = &mask
		}
		for _, l := range c.Ulimits {
			if l.Soft > l.Hard {
				return fmt.Errorf("soft limit %d of %s is above the hard limit %d", l.Soft, l.Type, l.Hard)
			}
			limits := slices.Clone(spec.Process.Rlimits)
			limits = slices.DeleteFunc(limits, func(o specs.POSIXRlimit) bool { return o.Type == l.Type })
			spec.Process.Rlimits = append(limits, l)
		}
		if c.Init {
			if spec.Annotations == nil {
				spec.Annotations = make(map[string]string)
			}
			spec.Annotations[wantsInit] = "on"
		}
		spec.Process.ApparmorProfile = c.AppArmorProfile
		spec.Process.SelinuxLabel = c.SELinuxLabel
		spec.Linux.MountLabel = c.SELinuxMountLabel
		return nil
	}
}

// relabels tells whether the first program that the container's first process
// executes changes its profile or label, and loses the parent-death signal thereby
// (in the kernel: apparmor_bprm_committing_creds, selinux_bprm_committing_creds).
// A program of ours, which sets it again, is executed first then. SELinux lets a
// process change its label only with files that are meant for it, as ours is if it
// has the label of the container's files.
func relabels(spec *specs.Spec) bool {
	return spec.Process.ApparmorProfile != "" || spec.Process.SelinuxLabel != "" && spec.Linux.MountLabel != ""
}

// CheckLabel fails unless this node has SELinux with a policy that knows the label.
func CheckLabel(label string) error {
	err := os.WriteFile("/sys/fs/selinux/context", append([]byte(label), 0), 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("SELinux label %s: this node has no SELinux, or it is switched off", label)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("SELinux label %s: the node's policy has no such user, role, type or level (for container_t it needs the package container-selinux)", label)
	case err != nil:
		return fmt.Errorf("SELinux label %s: %w", label, err)
	}
	return nil
}

// AppArmor describes the node's AppArmor; the zero value is this node's.
type AppArmor struct {
	// Enabled and Profiles are the kernel's files, by default
	// /sys/module/apparmor/parameters/enabled and
	// /sys/kernel/security/apparmor/profiles.
	Enabled, Profiles string
	// Install loads Docker's default profile under a name; by default with
	// apparmor_parser(8).
	Install func(name string) error
}

// Profiles of containers that need no setting: Docker's, if it is there, else a
// copy of it under a name of our own.
const (
	AppArmorAuto       = "auto"
	AppArmorUnconfined = "unconfined"
	dockerProfile      = "docker-default"
	ownProfile         = "crunch-run-default"
)

// Profile returns the profile that choice stands for: AppArmorAuto,
// AppArmorUnconfined or a name. For AppArmorAuto "" means that the node has no
// AppArmor, and an error that it has, but no profile could be loaded. A named
// profile must be loaded.
func (a AppArmor) Profile(choice string) (string, error) {
	if a.Enabled == "" {
		a.Enabled = "/sys/module/apparmor/parameters/enabled"
	}
	if a.Profiles == "" {
		a.Profiles = "/sys/kernel/security/apparmor/profiles"
	}
	if a.Install == nil {
		a.Install = apparmor.InstallDefault
	}
	if choice == "" || choice == AppArmorUnconfined {
		return "", nil
	}
	enabled, err := os.ReadFile(a.Enabled)
	if err != nil || !strings.HasPrefix(string(enabled), "Y") {
		if choice == AppArmorAuto {
			return "", nil
		}
		return "", fmt.Errorf("AppArmor profile %q: this kernel has no AppArmor, or it is switched off", choice)
	}
	text, err := os.ReadFile(a.Profiles)
	if err != nil {
		return "", fmt.Errorf("AppArmor profile %q: list the loaded profiles (is securityfs mounted on /sys/kernel/security?): %w", choice, err)
	}
	loaded := func(name string) bool {
		for line := range strings.Lines(string(text)) {
			// "name (mode)"; a name may contain blanks.
			if at := strings.LastIndex(line, " ("); at >= 0 && line[:at] == name {
				return true
			}
		}
		return false
	}
	if choice != AppArmorAuto {
		if !loaded(choice) {
			return "", fmt.Errorf("AppArmor profile %q is not loaded: load it with apparmor_parser, at every boot", choice)
		}
		return choice, nil
	}
	for _, name := range []string{dockerProfile, ownProfile} {
		if loaded(name) {
			return name, nil
		}
	}
	if err := a.Install(ownProfile); err != nil {
		return "", errors.Join(errors.New("AppArmor is on, but the default profile of containers cannot be loaded (install apparmor_parser, or set apparmor-profile)"), err)
	}
	return ownProfile, nil
}
