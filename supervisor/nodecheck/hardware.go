package nodecheck

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// vendors of GPUs by PCI vendor id, and how to see whether their driver works.
var vendors = []struct{ id, name, driver, device, advice string }{
	{"0x10de", "NVIDIA", "/proc/driver/nvidia/version", "/dev/nvidiactl", "install the NVIDIA driver, and run nvidia-modprobe (or nvidia-smi) once after each boot"},
	{"0x1002", "AMD", "/sys/module/amdgpu", "/dev/kfd", "load the amdgpu module of a kernel with CONFIG_HSA_AMD"},
}

// gpus looks for devices on the PCI bus whose driver is missing.
func gpus(c *checker) {
	if c.SiteErr == nil && c.Site.GPU == "off" {
		c.note("off (gpu: off)")
		return
	}
	paths, _ := filepath.Glob("/sys/bus/pci/devices/*/vendor")
	found := make(map[string]int)
	for _, p := range paths {
		class := readWord(filepath.Join(filepath.Dir(p), "class"))
		if strings.HasPrefix(class, "0x03") || strings.HasPrefix(class, "0x12") { // display, accelerator
			found[readWord(p)]++
		}
	}
	some := false
	for _, v := range vendors {
		n := found[v.id]
		_, driverErr := os.Stat(v.driver)
		_, deviceErr := os.Stat(v.device)
		switch {
		case n == 0 && driverErr != nil:
			continue
		case driverErr != nil:
			c.warn(v.advice, "%s from %s without a driver (%s is missing)", plural(n, "device"), v.name, v.driver)
		case deviceErr != nil:
			c.warn(v.advice, "%s driver without %s", v.name, v.device)
		default:
			c.ok("%s driver, %s", v.name, plural(n, "device"))
		}
		some = true
	}
	if !some {
		c.note("none")
	}
}

func readWord(path string) string {
	text, _ := os.ReadFile(path)
	return strings.TrimSpace(string(text))
}

// programYear is a year that has come when this was written: no right clock is
// before it.
const programYear = 2026

// clock finds clocks that are plainly wrong: certificates and the signatures of
// blocks are believed by it.
func clock(c *checker) {
	now := time.Now()
	if now.Year() < programYear {
		c.fail("set the clock, and run a time service such as chrony", "it is %s: certificates and signatures will be refused", now.UTC().Format(time.RFC3339))
		return
	}
	var x unix.Timex
	state, err := unix.Adjtimex(&x)
	switch {
	case err != nil:
		c.note("%s; whether it is kept right is not known: %v", now.UTC().Format(time.RFC3339), err)
	case state == unix.TIME_ERROR || x.Status&unix.STA_UNSYNC != 0:
		c.warn("run a time service such as chrony", "%s, kept right by nobody", now.UTC().Format(time.RFC3339))
	default:
		c.ok("%s, kept right", now.UTC().Format(time.RFC3339))
	}
}

// settings says whether they can be used; the list of them is the report's.
func settings(c *checker) {
	if c.SiteErr != nil {
		c.fail("correct them", "%v", c.SiteErr)
		return
	}
	set := 0
	for _, s := range c.Site.Describe() {
		if s.Origin != "default" {
			set++
		}
	}
	c.ok("%s other than the default", plural(set, "value"))
	if len(c.Site.KeepMount) > 0 {
		if _, err := os.Stat(c.Site.KeepMount[0]); err != nil && filepath.IsAbs(c.Site.KeepMount[0]) {
			c.fail("install the program, or remove the setting", "keep-mount: %v", err)
		}
	}
}
