package nvidia

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/elfso"
	"crunch-oci/gpu/host"
	"crunch-oci/gpu/ldcache"
)

// Capabilities are the parts of the driver a container gets, in the words of
// NVIDIA's container tools.
type Capabilities struct{ Compute, Utility bool }

// The driver's files (NVIDIA's driver README, "Installed Components"). Libraries
// are followed by ".so." and the driver's version, or by ".so.1" and the like.
var (
	computeLibraries = []string{
		"libcuda", "libcudadebugger", "libnvidia-opencl", "libnvidia-gpucomp", "libnvidia-ptxjitcompiler",
		"libnvidia-fatbinaryloader", "libnvidia-allocator", "libnvidia-compiler", "libnvidia-compiler-next",
		"libnvidia-pkcs11", "libnvidia-pkcs11-openssl3", "libnvidia-nvvm", "libnvidia-nvvm70", "libnvidia-tileiras",
	}
	utilityLibraries = []string{"libnvidia-ml", "libnvidia-cfg", "libnvidia-nscq", "libnvidia-sandboxutils"}
	utilityPrograms  = []string{"nvidia-smi", "nvidia-debugdump", "nvidia-persistenced"}
	computePrograms  = []string{"nvidia-cuda-mps-control", "nvidia-cuda-mps-server"}
	sockets          = []string{"/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"}
	// mpsDir is where the MPS daemon of the node listens, if root runs one. Anybody
	// on the node can make that name first, as a link to what is root's to read.
	mpsDir = "/tmp/nvidia-mps"
	// libraryDirs are searched in this order, after the one where the node's own
	// loader finds libcuda.so.1. 32-bit libraries are nowhere among them.
	libraryDirs = []string{
		"/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/x86_64-linux-gnu/nvidia/current",
		"/usr/lib64/nvidia", "/usr/lib/nvidia", "/usr/lib", "/lib/x86_64-linux-gnu", "/lib64", "/opt/lib64",
		"/run/opengl-driver/lib",
	}
	programDirs = []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/lib/nvidia/current", "/run/current-system/sw/bin"}
)

// Files finds what of the driver a container with these capabilities needs.
// version is the driver's. missing are the libraries without which it would be
// of no use.
func Files(h host.Host, version string, caps Capabilities) (e edit.Edits, missing []string) {
	var wanted []string
	var needed []string
	if caps.Compute {
		wanted, needed = append(wanted, computeLibraries...), append(needed, "libcuda")
	}
	if caps.Utility {
		wanted, needed = append(wanted, utilityLibraries...), append(needed, "libnvidia-ml")
	}
	dirs := searchDirs(h)
	for _, name := range wanted {
		if !addLibrary(&e, h, dirs, name, version) && slices.Contains(needed, name) {
			missing = append(missing, name+".so."+version)
		}
	}
	var programs []string
	if caps.Utility {
		programs = append(programs, utilityPrograms...)
	}
	if caps.Compute {
		programs = append(programs, computePrograms...)
	}
	for _, name := range programs {
		for _, dir := range programDirs {
			if source, _, err := h.Resolve(path.Join(dir, name)); err == nil && executable(source) {
				e.Mounts = append(e.Mounts, edit.Mount{Source: source, Target: "/usr/bin/" + name})
				break
			}
		}
	}
	addFirmware(&e, h, version)
	for _, name := range sockets {
		if source, _, err := h.Resolve(name); err == nil {
			e.Mounts = append(e.Mounts, edit.Mount{Source: source, Target: name, Socket: true})
		}
	}
	if source := filepath.Join(h.Root, mpsDir); caps.Compute && isRootsDirectory(source) {
		e.Mounts = append(e.Mounts, edit.Mount{Source: source, Target: mpsDir, Socket: true})
	}
	return e, missing
}

// isRootsDirectory tells whether name itself, not what it links to, is a
// directory of root's: in a sticky directory nobody else can then replace it.
func isRootsDirectory(name string) bool {
	var st unix.Stat_t
	return unix.Lstat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Uid == 0
}

// searchDirs are the directories of libraries, each once, as they are without
// links.
func searchDirs(h host.Host) (dirs []string) {
	candidates := libraryDirs
	if data, err := os.ReadFile(filepath.Join(h.Root, "etc/ld.so.cache")); err == nil {
		if cache, err := ldcache.Parse(data); err == nil {
			if found := cache.Find("libcuda.so.1", ldcache.FlagX86_64); found != "" {
				if _, real, err := h.Resolve(found); err == nil {
					candidates = append([]string{path.Dir(found), path.Dir(real)}, candidates...)
				}
			}
		}
	}
	for _, dir := range candidates {
		if _, real, err := h.Resolve(dir); err == nil && !slices.Contains(dirs, real) {
			dirs = append(dirs, real)
		}
	}
	return dirs
}

// addLibrary adds a library, the link by which programs know it, and its place
// in the loader's cache. A file of another driver's version is not taken: nodes
// keep the remains of old ones.
func addLibrary(e *edit.Edits, h host.Host, dirs []string, name, version string) bool {
	for _, dir := range dirs {
		for _, file := range []string{name + ".so." + version, name + ".so"} {
			source, real, err := h.Resolve(path.Join(dir, file))
			if err != nil || !strings.HasPrefix(path.Base(real), name+".so.") && path.Base(real) != name+".so" {
				continue
			}
			if file != name+".so."+version && !unversioned(path.Base(real), name, version) {
				continue
			}
			info, err := readLibrary(source)
			if err != nil {
				continue // of another machine, as 32-bit ones are
			}
			e.Mounts = append(e.Mounts, edit.Mount{Source: source, Target: real})
			folder := path.Dir(real)
			if !slices.Contains(e.Folders, folder) {
				e.Folders = append(e.Folders, folder)
			}
			link := func(name, target string) {
				if name != target {
					e.Links = append(e.Links, edit.Link{Path: path.Join(folder, name), Target: target})
				}
			}
			if info.Soname != "" {
				link(info.Soname, path.Base(real))
				e.Libraries = append(e.Libraries, edit.Library{Name: info.Soname, Path: path.Join(folder, info.Soname)})
			}
			if name == "libcuda" {
				// Some programs know it by the name that is for linking only.
				link("libcuda.so", "libcuda.so.1")
				e.Libraries = append(e.Libraries, edit.Library{Name: "libcuda.so", Path: path.Join(folder, "libcuda.so")})
			}
			return true
		}
	}
	return false
}

// unversioned tells whether a library's file does not carry the version of any
// driver, as a few do not: "libnvidia-pkcs11.so.1.2".
func unversioned(file, name, version string) bool {
	major, _, _ := strings.Cut(version, ".")
	rest := strings.TrimPrefix(strings.TrimPrefix(file, name+".so"), ".")
	first, _, _ := strings.Cut(rest, ".")
	return len(first) < len(major)
}

func readLibrary(source string) (elfso.Info, error) {
	f, err := os.Open(source)
	if err != nil {
		return elfso.Info{}, err
	}
	defer f.Close()
	return elfso.Read(f)
}

func executable(name string) bool {
	fi, err := os.Stat(name)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// addFirmware adds the firmware that the driver's library loads into the GPU.
func addFirmware(e *edit.Edits, h host.Host, version string) {
	for _, dir := range []string{"/lib/firmware/nvidia/" + version, "/usr/lib/firmware/nvidia/" + version} {
		source, _, err := h.Resolve(dir)
		if err != nil {
			continue
		}
		files, err := filepath.Glob(filepath.Join(source, "gsp*.bin"))
		if err != nil || len(files) == 0 {
			continue
		}
		for _, f := range files {
			e.Mounts = append(e.Mounts, edit.Mount{Source: f, Target: "/lib/firmware/nvidia/" + version + "/" + filepath.Base(f)})
		}
		return
	}
}
