package nvidia_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/gputest"
	"crunch-oci/gpu/host"
	"crunch-oci/gpu/nvidia"
)

func nodes(t *testing.T, h host.Host, names ...string) string {
	t.Helper()
	var found []string
	for _, name := range names {
		if d, err := h.Stat("/dev/" + name); err == nil {
			found = append(found, fmt.Sprintf("%s %d:%d %o %d:%d", name, d.Major, d.Minor, d.Mode, d.UID, d.GID))
		}
	}
	return strings.Join(found, ", ")
}

// On a node without a GPU no module is looked for.
func TestPrepareWithoutGPU(t *testing.T) {
	driver := gputest.New(t, 0)
	driver.Modprobe()
	driver.File("proc/devices", "Character devices:\n  1 mem\n")
	driver.File("sys/bus/pci/devices/0000:01:00.0/class", "0x020000\n") // a network card of theirs
	driver.File("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
	if notes := nvidia.Prepare(t.Context(), host.At(driver.Root)); len(notes) > 0 {
		t.Errorf("notes %q", notes)
	}
	if text, err := os.ReadFile(driver.Path("modprobe.log")); err == nil {
		t.Errorf("nvidia-modprobe was run with %q", text)
	}
}

// What is there is left alone.
func TestNothingToPrepare(t *testing.T) {
	driver := gputest.New(t, 2)
	driver.Modprobe()
	if notes := nvidia.Prepare(t.Context(), host.At(driver.Root)); len(notes) > 0 {
		t.Errorf("notes %q", notes)
	}
	if text, err := os.ReadFile(driver.Path("modprobe.log")); err == nil {
		t.Errorf("nvidia-modprobe was run with %q", text)
	}
}

// Without nvidia-modprobe the nodes are made with the driver's numbers, for the
// owner and with the mode that its parameters say.
func TestPrepareByHand(t *testing.T) {
	driver := gputest.New(t, 2)
	for _, name := range []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia1"} {
		driver.Remove("dev/" + name)
	}
	h := host.Host{Root: driver.Root, Dev: driver.Path("dev"), Proc: driver.Path("proc"), Sys: driver.Path("sys")}
	if notes := nvidia.Prepare(t.Context(), h); len(notes) > 0 {
		t.Errorf("notes %q", notes)
	}
	want := "nvidiactl 195:255 660 0:44, nvidia-uvm 510:0 660 0:44, nvidia-uvm-tools 510:1 660 0:44, nvidia0 195:0 666 0:0, nvidia1 195:1 660 0:44"
	if got := nodes(t, h, "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia1"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	driver.File("proc/driver/nvidia/params", "ModifyDeviceFiles: 0\n")
	driver.Remove("dev/nvidia1")
	if notes := nvidia.Prepare(t.Context(), h); len(notes) > 0 || nodes(t, h, "nvidia1") != "" {
		t.Errorf("made although the driver does not want it: %s, notes %q", nodes(t, h, "nvidia1"), notes)
	}
}

// With it, it is asked first, for the modules too; and what it says when it
// fails is passed on.
func TestPrepareWithModprobe(t *testing.T) {
	driver := gputest.New(t, 1)
	driver.Modprobe()
	devices, err := os.ReadFile(driver.Path("proc/devices"))
	if err != nil {
		t.Fatal(err)
	}
	driver.File("modprobe.devices", string(devices))
	driver.File("proc/devices", "Character devices:\n  1 mem\n")
	driver.Remove("dev/nvidia0")
	driver.Remove("dev/nvidia-uvm")
	h := host.At(driver.Root)
	if notes := nvidia.Prepare(t.Context(), h); len(notes) > 0 {
		t.Errorf("notes %q", notes)
	}
	log, err := os.ReadFile(driver.Path("modprobe.log"))
	if want := "\n -c0 -u\n -c0\n"; err != nil || string(log) != want {
		t.Errorf("nvidia-modprobe was run with %q, %v", log, err)
	}
	if got := nodes(t, h, "nvidia0", "nvidia-uvm"); got != "nvidia0 195:0 660 0:44, nvidia-uvm 510:0 660 0:44" {
		t.Errorf("nodes %s", got)
	}

	driver.File("modprobe.fail", "no such module\n")
	driver.File("proc/devices", "Character devices:\n  1 mem\n")
	notes := nvidia.Prepare(t.Context(), h)
	if len(notes) != 1 || notes[0] != "Warning [nvidia-modprobe]: exit status 1: no such module" {
		t.Errorf("notes %q", notes)
	}
}

func TestPrepareMIG(t *testing.T) {
	driver := gputest.New(t, 1)
	driver.Modprobe()
	driver.File("proc/driver/nvidia/capabilities/gpu0/mig/gi3/access", "DeviceFileMinor: 30\nDeviceFileMode: 292\n")
	driver.File("proc/driver/nvidia/capabilities/gpu0/mig/gi3/ci0/access", "DeviceFileMinor: 31\nDeviceFileMode: 292\n")
	driver.Node("dev/nvidia-caps/nvidia-cap31", gputest.Caps, 31)
	mig := device.Device{UUID: "MIG-1", Instance: &device.Instance{Parent: "GPU-0", GPU: 3}}
	if notes := nvidia.PrepareMIG(t.Context(), host.At(driver.Root), []device.Device{{UUID: "GPU-1"}, mig}); len(notes) > 0 {
		t.Errorf("notes %q", notes)
	}
	log, err := os.ReadFile(driver.Path("modprobe.log"))
	if want := " -f /proc/driver/nvidia/capabilities/gpu0/mig/gi3/access\n"; err != nil || string(log) != want {
		t.Errorf("nvidia-modprobe was run with %q, %v", log, err)
	}
}

// What anybody can make in /tmp is not the MPS daemon's.
func TestMPSDirectory(t *testing.T) {
	driver := gputest.New(t, 1)
	given := func() bool {
		e, _ := nvidia.Files(host.At(driver.Root), gputest.Version, nvidia.Capabilities{Compute: true})
		return slices.ContainsFunc(e.Mounts, func(m edit.Mount) bool { return m.Target == "/tmp/nvidia-mps" })
	}
	driver.File("root/secret", "")
	driver.File("tmp/x", "")
	driver.Link("tmp/nvidia-mps", "/root")
	if given() {
		t.Error("a link to what is root's is given to the container")
	}
	driver.Remove("tmp/nvidia-mps")
	driver.File("tmp/nvidia-mps/control", "")
	if !given() {
		t.Error("the directory of root's daemon is not given")
	}
	if err := os.Chown(driver.Path("tmp/nvidia-mps"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if given() {
		t.Error("the directory of somebody else, who can replace it, is given")
	}
}

// The driver's files are those of its version, whatever else is there.
func TestFiles(t *testing.T) {
	driver := gputest.New(t, 1)
	h := host.At(driver.Root)
	if _, missing := nvidia.Files(h, "470.1", nvidia.Capabilities{Compute: true, Utility: true}); strings.Join(missing, " ") != "libnvidia-ml.so.470.1" {
		t.Errorf("missing of an older driver: %q", missing)
	}
	// A 32-bit library of the same name is none for the container.
	driver.File("usr/lib/x86_64-linux-gnu/libcuda.so."+gputest.Version, "\x7fELF\x01\x01\x01 and so on")
	if _, missing := nvidia.Files(h, gputest.Version, nvidia.Capabilities{Compute: true}); strings.Join(missing, " ") != "libcuda.so."+gputest.Version {
		t.Errorf("missing with a 32-bit library: %q", missing)
	}
	// Links of the driver's are followed below its own root, not the node's.
	driver.Remove("usr/lib/x86_64-linux-gnu/libcuda.so." + gputest.Version)
	driver.Link("usr/lib/x86_64-linux-gnu/libcuda.so."+gputest.Version, "/opt/real/libcuda.so."+gputest.Version)
	driver.File("opt/real/libcuda.so."+gputest.Version, string(gputest.Library(t, "libcuda.so.1", "int cuInit(unsigned f) { return f; }")))
	e, missing := nvidia.Files(h, gputest.Version, nvidia.Capabilities{Compute: true})
	if len(missing) > 0 || e.Mounts[0].Source != driver.Path("opt/real/libcuda.so."+gputest.Version) || e.Mounts[0].Target != "/opt/real/libcuda.so."+gputest.Version {
		t.Errorf("%+v, missing %q", e.Mounts[0], missing)
	}
}

func TestCheckGlibc(t *testing.T) {
	driver := gputest.New(t, 1)
	e, _ := nvidia.Files(host.At(driver.Root), gputest.Version, nvidia.Capabilities{Compute: true, Utility: true})
	image := func(files map[string]string) string {
		d := gputest.New(t, 0)
		for name, text := range files {
			d.File(name, text)
		}
		return d.Root
	}
	libc, err := os.ReadFile("/lib/x86_64-linux-gnu/libc.so.6")
	if err != nil {
		t.Fatal(err)
	}
	// A C library that defines an old version and no newer one.
	old := gputest.OldLibc(t, "2.17")
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"the same":   {map[string]string{"lib/x86_64-linux-gnu/libc.so.6": string(libc)}, ""},
		"Red Hat's":  {map[string]string{"usr/lib64/libc.so.6": string(libc)}, ""},
		"old":        {map[string]string{"lib64/libc.so.6": string(old)}, "the image's glibc (2.17) is older than what the node's GPU driver needs"},
		"musl":       {map[string]string{"lib/ld-musl-x86_64.so.1": "x"}, "the image has musl instead of glibc"},
		"none":       {nil, "the image has no glibc"},
		"a text":     {map[string]string{"lib64/libc.so.6": "GROUP ( libc.so.6 )"}, "the image has no glibc"},
		"two of two": {map[string]string{"lib/x86_64-linux-gnu/libc.so.6": string(libc), "lib/libc.so.6": string(old)}, ""},
	} {
		got := nvidia.CheckGlibc(image(c.files), e.Mounts)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := nvidia.CheckGlibc(image(nil), nil); got != "" {
		t.Errorf("without libraries: %q", got)
	}
}

// Libraries of the image are preferred to the driver's where NVIDIA allows it:
// newer ones, on GPUs for data centres.
func TestCompat(t *testing.T) {
	lib := string(gputest.Library(t, "libcuda.so.1", "int cuInit(unsigned f) { return f; }"))
	jit := string(gputest.Library(t, "libnvidia-ptxjitcompiler.so.1", "int f(void) { return 1; }"))
	a100, geforce := []device.Device{{Name: "NVIDIA A100-SXM4-40GB"}}, []device.Device{{Name: "NVIDIA GeForce RTX 3090"}}
	const dir = "/usr/local/cuda-12.8/compat/"
	for name, c := range map[string]struct {
		files   map[string]string
		devices []device.Device
		want    string
	}{
		"newer":       {map[string]string{"libcuda.so.570.86.10": lib, "libnvidia-ptxjitcompiler.so.570.86.10": jit}, a100, "libcuda.so.1=libcuda.so.570.86.10 libcuda.so=libcuda.so.570.86.10 libnvidia-ptxjitcompiler.so.1=libnvidia-ptxjitcompiler.so.570.86.10"},
		"the same":    {map[string]string{"libcuda.so.550.90.07": lib}, a100, ""},
		"older":       {map[string]string{"libcuda.so.470.1.1": lib}, a100, ""},
		"GeForce":     {map[string]string{"libcuda.so.570.86.10": lib}, geforce, ""},
		"a text":      {map[string]string{"libcuda.so.570.86.10": "not a library"}, a100, ""},
		"leads out":   {map[string]string{"libcuda.so.570.86.10": "->/etc/hostname"}, a100, ""},
		"nothing":     {nil, a100, ""},
		"odd version": {map[string]string{"libcuda.so.x.y": lib, "libcuda.so.1": lib}, a100, ""},
	} {
		d := gputest.New(t, 0)
		d.File("usr/local/x", "")
		d.Link("usr/local/cuda", "/usr/local/cuda-12.8")
		for name, text := range c.files {
			if target, ok := strings.CutPrefix(text, "->"); ok {
				d.File(dir+"x", "")
				d.Link(dir+name, target)
				continue
			}
			d.File(dir+name, text)
		}
		e, note := nvidia.Compat(d.Root, gputest.Version, c.devices)
		var got []string
		for _, l := range e.Libraries {
			got = append(got, l.Name+"="+strings.TrimPrefix(l.Path, "/usr/local/cuda/compat/"))
		}
		if s := strings.Join(got, " "); s != c.want || (note == "") != (c.want == "") || (len(e.Folders) == 0) != (c.want == "") {
			t.Errorf("%s: %q, %v, note %q", name, s, e.Folders, note)
		}
		if len(e.Mounts) > 0 {
			t.Errorf("%s: a file of the image is mounted", name)
		}
	}
}
