package nvidia

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/elfso"
)

// compatDir is where images have the user-mode libraries of a driver that is
// newer than the node's (NVIDIA, "CUDA Compatibility", forward compatibility).
const compatDir = "/usr/local/cuda/compat"

// maxCompatFiles bounds what is looked at there.
const maxCompatFiles = 200

// Compat makes the loader of a container prefer the libraries of its own image,
// if these are of a newer major version of the driver than the node's and the
// GPUs are of the kind that allows it, those for data centres. Only the loader's
// cache points there: a file of the image is never mounted anywhere, and is
// looked at only to see that it is a library.
func Compat(root, driver string, devices []device.Device) (e edit.Edits, note string) {
	if brandOf(devices) != "tesla" {
		return e, ""
	}
	dir, err := os.Open(root)
	if err != nil {
		return e, ""
	}
	defer dir.Close()
	names := listInRoot(dir, compatDir)
	version := ""
	for _, name := range names {
		if v, ok := strings.CutPrefix(name, "libcuda.so."); ok && strings.Contains(v, ".") && newerMajor(v, driver) {
			version = v
		}
	}
	if version == "" {
		return e, ""
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".so."+version) {
			continue
		}
		at := path.Join(compatDir, name)
		f, err := edit.OpenInRoot(dir, at)
		if err != nil {
			continue
		}
		info, err := elfso.Read(f)
		_ = f.Close()
		if err != nil || info.Soname == "" {
			continue
		}
		e.Libraries = append(e.Libraries, edit.Library{Name: info.Soname, Path: at})
		if info.Soname == "libcuda.so.1" {
			e.Libraries = append(e.Libraries, edit.Library{Name: "libcuda.so", Path: at})
		}
	}
	if !slices.ContainsFunc(e.Libraries, func(l edit.Library) bool { return l.Name == "libcuda.so.1" }) {
		return edit.Edits{}, ""
	}
	e.Folders = []string{compatDir}
	return e, fmt.Sprintf("the container uses its image's CUDA compatibility libraries (%s), which are newer than the node's driver (%s)", version, driver)
}

// newerMajor compares the first parts of two versions.
func newerMajor(a, b string) bool {
	x, _, _ := strings.Cut(a, ".")
	y, _, _ := strings.Cut(b, ".")
	order, ok := device.Compare(x, y)
	return ok && order > 0
}

// listInRoot lists a directory of an image, sorted; what is not there is empty.
func listInRoot(root *os.File, name string) []string {
	handle, err := pathrs.OpenatInRoot(root, name)
	if err != nil {
		return nil
	}
	defer handle.Close()
	if fi, err := handle.Stat(); err != nil || fi.Mode().Type() != fs.ModeDir {
		return nil
	}
	dir, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(maxCompatFiles)
	slices.Sort(names)
	return names
}
