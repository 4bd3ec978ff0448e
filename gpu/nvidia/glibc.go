package nvidia

import (
	"fmt"
	"os"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/elfso"
	"crunch-oci/gpu/host"
)

// LibraryPath is where NVML is; "" if the loader finds it by itself.
func LibraryPath(h host.Host) string {
	if h.Root == "/" {
		return ""
	}
	for _, dir := range searchDirs(h) {
		if source, _, err := h.Resolve(dir + "/libnvidia-ml.so.1"); err == nil {
			return source
		}
	}
	return h.Root + "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1" // for the message
}

// libcPaths are where images have their C library: Debian's, Red Hat's, and that
// of others.
var libcPaths = []string{
	"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6",
	"/usr/lib64/libc.so.6", "/usr/lib/libc.so.6", "/lib/libc.so.6",
}

const muslPath = "/lib/ld-musl-x86_64.so.1"

// maxLibc bounds the size of what is taken for a C library, in bytes.
const maxLibc = 64 << 20

// CheckGlibc says, for the log, that the driver's libraries will not load in an
// image with root directory root: they are those of the node, and need at least
// the C library they were made for. It is no error, because the container may do
// without.
func CheckGlibc(root string, mounts []edit.Mount) string {
	needs, by := "", ""
	for _, m := range mounts {
		info, err := readLibrary(m.Source)
		if err == nil && info.Needs != "" && (needs == "" || !device.AtLeast(needs, info.Needs)) {
			needs, by = info.Needs, m.Target
		}
	}
	if needs == "" {
		return ""
	}
	dir, err := os.Open(root)
	if err != nil {
		return ""
	}
	defer dir.Close()
	for _, name := range libcPaths {
		have := providedBy(dir, name)
		switch {
		case have == "":
			continue
		case device.AtLeast(have, needs):
			return ""
		}
		return fmt.Sprintf("warning: the image's glibc (%s) is older than what the node's GPU driver needs (%s, for %s): programs in the container will not be able to load the driver", have, needs, by)
	}
	if f, err := edit.OpenInRoot(dir, muslPath); err == nil {
		_ = f.Close()
		return fmt.Sprintf("warning: the image has musl instead of glibc, which the node's GPU driver needs (%s): programs in the container will not be able to load the driver", needs)
	}
	return fmt.Sprintf("warning: the image has no glibc, which the node's GPU driver needs (%s): programs in the container will not be able to load the driver", needs)
}

func providedBy(dir *os.File, name string) string {
	f, err := edit.OpenInRoot(dir, name)
	if err != nil {
		return ""
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() > maxLibc {
		return ""
	}
	info, err := elfso.Read(f)
	if err != nil {
		return ""
	}
	return info.Provides
}
