package nodecheck

import (
	"errors"
	"os"
	"strings"

	"crunch-oci/oci"
)

// appArmor looks whether containers get the profile that the site asks for.
func appArmor(c *checker) {
	if c.SiteErr != nil {
		return
	}
	choice := c.Site.AppArmorProfile
	profile, err := c.AppArmor.Profile(choice)
	switch {
	case err != nil && choice == oci.AppArmorAuto:
		c.warn("install apparmor_parser (package apparmor), or set apparmor-profile", "%v", err)
	case err != nil:
		c.fail("load the profile at boot, or change the setting apparmor-profile", "%v", err)
	case profile != "":
		c.ok("AppArmor profile %s", profile)
	case choice == oci.AppArmorUnconfined:
		c.note("apparmor-profile is unconfined: containers run without AppArmor profile")
	default:
		c.note("this kernel has no AppArmor, or it is switched off")
	}
}

// selinux looks whether labels mean anything here.
func selinux(c *checker) {
	if c.SiteErr != nil {
		return
	}
	dir := c.SELinuxDir
	if dir == "" {
		dir = "/sys/fs/selinux"
	}
	wanted := c.Site.SELinuxLabel != "" || c.Site.SELinuxMountLabel != ""
	enforcing, err := os.ReadFile(dir + "/enforce")
	switch {
	case errors.Is(err, os.ErrNotExist) && wanted:
		c.fail("switch SELinux on, or remove the settings selinux-label and selinux-mount-label", "the settings name SELinux labels, but this node has no SELinux: no container can be started")
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		c.warn("", "SELinux: %v", err)
	case !wanted:
		c.note("SELinux is on; containers run with the label of crunch-run (selinux-label is not set)")
	case strings.TrimSpace(string(enforcing)) != "1":
		c.warn("setenforce 1", "SELinux is permissive: labels of containers protect nothing")
	default:
		c.ok("SELinux label %s", c.Site.SELinuxLabel)
	}
}
