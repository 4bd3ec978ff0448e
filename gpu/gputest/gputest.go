// Package gputest makes the tree of files that an installed NVIDIA driver
// consists of, with stand-ins for its libraries, for tests on machines without a
// GPU.
package gputest

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

//go:embed testdata/nvml.c
var nvmlSource string

//go:embed testdata/cuda.c
var cudaSource string

//go:embed testdata/modprobe.c
var modprobeSource string

//go:embed testdata/probe.c
var probeSource string

// Device numbers in the tree: NVIDIA's own. No driver answers to them here, so
// that opening a node fails with ENXIO where it is allowed, and with EPERM where
// the container's device filter forbids it.
const (
	Frontend = 195
	UVM      = 510
	Caps     = 238
)

// Version is that of the stand-in driver.
const Version = "550.54.15"

// LibDir is where its libraries are, below the root.
const LibDir = "usr/lib/x86_64-linux-gnu"

// Tree is a driver root.
type Tree struct {
	t    testing.TB
	Root string
	// GPUs is the number of GPUs it has.
	GPUs int
}

// New makes a tree with this many GPUs.
func New(t testing.TB, gpus int) *Tree {
	t.Helper()
	d := &Tree{t, t.TempDir(), gpus}
	d.Conf("count", fmt.Sprint(gpus))
	d.install(LibDir+"/libnvidia-ml.so."+Version, compiled(t, "nvml"))
	// libGLX_nvidia is for graphics, which containers do not get; 470.1 an older
	// driver's, which was left behind.
	for _, name := range libraries {
		d.install(LibDir+"/"+name+".so."+Version, compiled(t, name))
	}
	d.install(LibDir+"/libcuda.so.470.1", compiled(t, "libcuda"))
	d.Link(LibDir+"/libcuda.so.1", "libcuda.so."+Version)
	d.Link(LibDir+"/libnvidia-ml.so.1", "libnvidia-ml.so."+Version)
	for _, name := range []string{"nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "nvidia-xconfig"} {
		d.Program("usr/bin/"+name, "#!/bin/sh\necho stand-in "+name+"\n")
	}
	d.File("lib/firmware/nvidia/"+Version+"/gsp_ga10x.bin", "firmware")
	d.File("proc/devices", fmt.Sprintf("Character devices:\n  1 mem\n%d nvidia\n%d nvidia-caps\n%d nvidia-uvm\n\nBlock devices:\n%d nvidia\n", Frontend, Caps, UVM, Frontend+1))
	d.File("proc/driver/nvidia/params", "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n")
	d.Node("dev/nvidiactl", Frontend, 255)
	d.Node("dev/nvidia-uvm", UVM, 0)
	d.Node("dev/nvidia-uvm-tools", UVM, 1)
	for i := range gpus {
		pci := fmt.Sprintf("sys/bus/pci/devices/0000:%02x:00.0/", i+1)
		d.File(pci+"class", "0x030200\n")
		d.File(pci+"vendor", "0x10de\n")
		d.File(pci+"numa_node", fmt.Sprintf("%d\n", i/2))
		d.File(fmt.Sprintf("proc/driver/nvidia/gpus/0000:%02x:00.0/information", i+1), fmt.Sprintf("Model: \t\t Stand-in\nDevice Minor: \t %d\n", i))
		d.Node(fmt.Sprintf("dev/nvidia%d", i), Frontend, i)
	}
	return d
}

// Path is where a file of the tree is.
func (d *Tree) Path(name string) string { return filepath.Join(d.Root, name) }

func (d *Tree) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *Tree) install(name string, content []byte) {
	d.t.Helper()
	d.must(os.MkdirAll(filepath.Dir(d.Path(name)), 0o755))
	d.must(os.WriteFile(d.Path(name), content, 0o644))
}

// File makes a file.
func (d *Tree) File(name, text string) { d.t.Helper(); d.install(name, []byte(text)) }

// Program makes an executable file.
func (d *Tree) Program(name, text string) {
	d.t.Helper()
	d.File(name, text)
	d.must(os.Chmod(d.Path(name), 0o755))
}

// Modprobe installs a stand-in for nvidia-modprobe, see testdata/modprobe.c.
func (d *Tree) Modprobe() {
	d.t.Helper()
	d.install("usr/bin/nvidia-modprobe", compiled(d.t, "modprobe"))
	d.must(os.Chmod(d.Path("usr/bin/nvidia-modprobe"), 0o755))
}

// Link makes a symbolic link.
func (d *Tree) Link(name, target string) { d.t.Helper(); d.must(os.Symlink(target, d.Path(name))) }

// Remove removes what is at name.
func (d *Tree) Remove(name string) { d.t.Helper(); d.must(os.RemoveAll(d.Path(name))) }

// Node makes a character device.
func (d *Tree) Node(name string, major, minor int) {
	d.t.Helper()
	d.must(os.MkdirAll(filepath.Dir(d.Path(name)), 0o755))
	if err := unix.Mknod(d.Path(name), unix.S_IFCHR|0o666, int(unix.Mkdev(uint32(major), uint32(minor)))); err != nil {
		d.t.Fatalf("mknod %s: %v (the test needs root)", d.Path(name), err)
	}
	d.must(os.Chmod(d.Path(name), 0o666))
}

// Conf changes an answer of the stand-in NVML: see testdata/nvml.c.
func (d *Tree) Conf(key, value string) {
	d.t.Helper()
	d.must(os.MkdirAll(d.Path(LibDir), 0o755))
	f, err := os.OpenFile(d.Path(LibDir+"/standin.conf"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	d.must(err)
	_, err = fmt.Fprintf(f, "%s %s\n", key, value)
	d.must(err)
	d.must(f.Close())
}

// FailWithXID makes a GPU report an error.
func (d *Tree) FailWithXID(gpu, xid int) {
	d.t.Helper()
	// Renamed, so that it is there as a whole.
	d.File(LibDir+"/standin.new", fmt.Sprintf("%d %d\n", gpu, xid))
	d.must(os.Rename(d.Path(LibDir+"/standin.new"), d.Path(LibDir+"/standin.xid")))
}

// Probe is a program for containers, see testdata/probe.c, and the files of this
// machine that it needs there.
func Probe(t testing.TB) map[string][]byte {
	t.Helper()
	files := map[string][]byte{"usr/bin/gpuprobe": compiled(t, "probe")}
	for _, name := range []string{"lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6"} {
		data, err := os.ReadFile("/" + name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = data
	}
	return files
}

// OldLibc is a library that defines a symbol of an old version of glibc, and no
// newer one.
func OldLibc(t testing.TB, version string) []byte {
	t.Helper()
	script := filepath.Join(t.TempDir(), "versions")
	if err := os.WriteFile(script, []byte("GLIBC_"+version+" { global: f; local: *; };\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return Library(t, "libc.so.6", "int f(void) { return 0; }", "-nostdlib", "-Wl,--version-script="+script)
}

// ProgramsVariable names a directory with what has been compiled already, for
// machines without a compiler; Compile puts it there.
const ProgramsVariable = "VMTEST_PROGRAMS"

const prefix = "gpu-"

// libraries are those of the driver beside NVML.
var libraries = []string{
	"libcuda", "libnvidia-ptxjitcompiler", "libnvidia-nvvm", "libnvidia-gpucomp", "libnvidia-opencl", "libnvidia-cfg",
	"libGLX_nvidia",
}

// Compile puts everything that a Tree is made of into a directory.
func Compile(t testing.TB, dir string) {
	t.Helper()
	for _, name := range append([]string{"nvml", "probe", "modprobe"}, libraries...) {
		if err := os.WriteFile(filepath.Join(dir, prefix+name), compiled(t, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

var (
	compileMu sync.Mutex
	compiles  = make(map[string][]byte)
)

// Library compiles C source to a shared library with a soname.
func Library(t testing.TB, soname, source string, args ...string) []byte {
	t.Helper()
	return gcc(t, source, append([]string{"-shared", "-fPIC", "-Wl,-soname," + soname}, args...)...)
}

// compiled returns "nvml", "probe" or a library of that name, compiled once per
// process.
func compiled(t testing.TB, name string) []byte {
	t.Helper()
	compileMu.Lock()
	defer compileMu.Unlock()
	if data, ok := compiles[name]; ok {
		return data
	}
	if dir := os.Getenv(ProgramsVariable); dir != "" {
		data, err := os.ReadFile(filepath.Join(dir, prefix+name))
		if err != nil {
			t.Fatal(err)
		}
		compiles[name] = data
		return data
	}
	var data []byte
	switch name {
	case "nvml":
		data = Library(t, "libnvidia-ml.so.1", nvmlSource, "-ldl")
	case "probe":
		data = gcc(t, probeSource, "-ldl")
	case "modprobe":
		data = gcc(t, modprobeSource, "-static")
	case "libnvidia-nvvm":
		data = Library(t, "libnvidia-nvvm.so.4", cudaSource)
	default:
		data = Library(t, name+".so.1", cudaSource)
	}
	compiles[name] = data
	return data
}

func gcc(t testing.TB, source string, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	cmd := exec.Command("gcc", append([]string{"-O1", "-o", out, "-x", "c", "-", "-x", "none"}, args...)...)
	cmd.Stdin = strings.NewReader(source)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
