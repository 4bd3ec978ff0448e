// Package host says where on a node the GPU driver is. Usually that is /, but a
// driver may be installed in a directory of its own, as NVIDIA's GPU operator
// does in /run/nvidia/driver, with its own /dev and /proc in it or without.
package host

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// Host is where to look.
type Host struct {
	// Root is the directory the driver's libraries and programs are below.
	Root string
	// Dev, Proc and Sys are the file systems of these names.
	Dev, Proc, Sys string
}

// At describes a node whose driver is below root. Device nodes, and what the
// kernel says, are taken from there too if it has them.
func At(root string) Host {
	h := Host{Root: filepath.Clean(root), Dev: "/dev", Proc: "/proc", Sys: "/sys"}
	if h.Root == "/" {
		return h
	}
	for _, f := range []struct {
		dir    *string
		proofs []string
	}{
		{&h.Dev, []string{"dev/nvidiactl", "dev/kfd"}},
		{&h.Proc, []string{"proc/devices"}},
		{&h.Sys, []string{"sys/bus/pci", "sys/class/kfd"}},
	} {
		for _, proof := range f.proofs {
			name := filepath.Join(h.Root, proof)
			if _, err := os.Lstat(name); err == nil {
				*f.dir = filepath.Join(h.Root, strings.SplitN(proof, "/", 2)[0])
			}
		}
	}
	return h
}

// Resolve finds a file of the driver: its links are followed as if Root were the
// root directory. path is its path without links below Root, as a process chrooted there
// would see it.
func (h Host) Resolve(name string) (source, path string, err error) {
	source, err = securejoin.SecureJoin(h.Root, name)
	if err != nil {
		return "", "", err
	}
	if _, err := os.Stat(source); err != nil {
		return "", "", err
	}
	rel, err := filepath.Rel(h.Root, source)
	if err != nil {
		return "", "", err
	}
	return source, "/" + rel, nil
}

// Major returns the major number of a character device driver by its name in
// /proc/devices; ok is false if the kernel has none of these names.
func (h Host) Major(names ...string) (major int64, ok bool, err error) {
	text, err := os.ReadFile(filepath.Join(h.Proc, "devices"))
	if err != nil {
		return 0, false, fmt.Errorf("find device numbers: %w", err)
	}
	majors := parseDevices(strings.NewReader(string(text)))
	for _, name := range names {
		if n, ok := majors[name]; ok {
			return n, true, nil
		}
	}
	return 0, false, nil
}

// parseDevices reads the character devices of /proc/devices (proc(5)).
func parseDevices(r io.Reader) map[string]int64 {
	majors := make(map[string]int64)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		switch line := strings.TrimSpace(lines.Text()); {
		case line == "Block devices:":
			return majors
		default:
			number, name, ok := strings.Cut(line, " ")
			n, err := strconv.ParseInt(number, 10, 64)
			if ok && err == nil && n >= 0 {
				majors[strings.TrimSpace(name)] = n
			}
		}
	}
	return majors
}

// Device is a device node of the node.
type Device struct {
	Major, Minor int64
	Mode         uint32 // permission bits
	UID, GID     uint32
	IsCharacter  bool
}

// Stat looks at a device node by its path in the container, "/dev/…". The error
// is fs.ErrNotExist if there is none.
func (h Host) Stat(path string) (Device, error) {
	var st unix.Stat_t
	name := h.DevPath(path)
	if err := unix.Stat(name, &st); err != nil {
		return Device{}, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return Device{
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid,
		IsCharacter: st.Mode&unix.S_IFMT == unix.S_IFCHR,
	}, nil
}

// DevPath is where a device node is on the node.
func (h Host) DevPath(path string) string {
	return filepath.Join(h.Dev, strings.TrimPrefix(path, "/dev/"))
}

// ReadText reads a small file of the kernel; a missing one is empty.
func ReadText(name string) (string, error) {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// Vendors of GPUs on the PCI bus.
const (
	VendorNVIDIA = "0x10de"
	VendorAMD    = "0x1002"
)

// HasGPU tells whether the PCI bus has a display controller (class 03) or
// processing accelerator (class 12) of a vendor, with a driver or without.
func (h Host) HasGPU(vendor string) bool {
	dirs, err := filepath.Glob(filepath.Join(h.Sys, "bus/pci/devices/*"))
	if err != nil {
		return false
	}
	for _, dir := range dirs {
		class, err := ReadText(filepath.Join(dir, "class"))
		if err != nil || !strings.HasPrefix(class, "0x03") && !strings.HasPrefix(class, "0x12") {
			continue
		}
		if v, err := ReadText(filepath.Join(dir, "vendor")); err == nil && v == vendor {
			return true
		}
	}
	return false
}

// NUMA returns the memory node of a PCI device; -1 if it is not known.
func (h Host) NUMA(pci string) int {
	text, err := ReadText(filepath.Join(h.Sys, "bus/pci/devices", pci, "numa_node"))
	n, err2 := strconv.Atoi(text)
	if err != nil || err2 != nil {
		return -1
	}
	return n
}
