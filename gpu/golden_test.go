//go:build !nonvml

package gpu_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/gpu"
	"crunch-oci/gpu/device"
	"crunch-oci/gpu/gputest"
	"crunch-oci/gpu/host"
	"crunch-oci/gpu/ldcache"
	"crunch-oci/gpu/lease"
	"crunch-oci/gpu/nvidia"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The helper process of the tests: this program again, with a mock for NVML that
// is named by its first argument.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "helper" {
		h := host.At(os.Args[3])
		if err := nvidia.ServeLibrary(os.Stdin, os.Stdout, machines[os.Args[2]](), h); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// machines are go-nvml's mocks, with UUIDs that are the same each time.
var machines = map[string]func() nvml.Interface{
	"dgxa100":     func() nvml.Interface { return settled(dgxa100.New()) },
	"dgxh100":     func() nvml.Interface { return settled(dgxh100.New()) },
	"dgxb200":     func() nvml.Interface { return settled(dgxb200.New()) },
	"dgxa100-mig": func() nvml.Interface { return withMIG(settled(dgxa100.New())) },
	"no library":  func() nvml.Interface { return failing(nvml.ERROR_LIBRARY_NOT_FOUND) },
	"no module":   func() nvml.Interface { return failing(nvml.ERROR_DRIVER_NOT_LOADED) },
	"mismatch":    func() nvml.Interface { return failing(nvml.ERROR_LIB_RM_VERSION_MISMATCH) },
	"one lost": func() nvml.Interface {
		s := settled(dgxa100.New())
		get := s.DeviceGetHandleByIndexFunc
		s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
			if i == 0 {
				return nil, nvml.ERROR_GPU_IS_LOST
			}
			return get(i)
		}
		return s
	},
}

func failing(ret nvml.Return) nvml.Interface {
	s := dgxa100.New()
	s.InitFunc = func() nvml.Return { return ret }
	return s
}

// settled makes a mock's answers the same each time. What it has no answer to,
// its library does not have.
func settled(s *server.Server) *server.Server {
	s.DriverVersion = gputest.Version
	for i, d := range s.Devices {
		d.(*server.Device).UUID = fmt.Sprintf("GPU-%08d-0000-0000-0000-000000000000", i)
	}
	s.LookupSymbolFunc = func(symbol string) error {
		if strings.Contains(symbol, "NvLink") || strings.Contains(symbol, "Topology") || strings.Contains(symbol, "Event") {
			return errors.New("not found")
		}
		return nil
	}
	return s
}

// withMIG splits GPU 0 into a larger and two smaller instances, with a gap
// between their numbers, and GPU 1 into none.
func withMIG(s *server.Server) *server.Server {
	s.Devices[0].(*server.Device).MigMode = nvml.DEVICE_MIG_ENABLE
	s.Devices[1].(*server.Device).MigMode = nvml.DEVICE_MIG_ENABLE
	instances := map[int]*mock.Device{0: migDevice(0, 1, 20<<30), 1: migDevice(1, 5, 5<<30), 3: migDevice(3, 6, 5<<30)}
	for i := range 2 {
		d := s.Devices[i].(*server.Device)
		d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
		d.GetMigDeviceHandleByIndexFunc = func(n int) (nvml.Device, nvml.Return) {
			if instances[n] == nil || i > 0 {
				return nil, nvml.ERROR_NOT_FOUND
			}
			return instances[n], nvml.SUCCESS
		}
	}
	return s
}

func migDevice(index, gi int, memory uint64) *mock.Device {
	return &mock.Device{
		GetUUIDFunc:              func() (string, nvml.Return) { return fmt.Sprintf("MIG-%d", index), nvml.SUCCESS },
		GetNameFunc:              func() (string, nvml.Return) { return "Mock MIG", nvml.SUCCESS },
		GetGpuInstanceIdFunc:     func() (int, nvml.Return) { return gi, nvml.SUCCESS },
		GetComputeInstanceIdFunc: func() (int, nvml.Return) { return 0, nvml.SUCCESS },
		GetMemoryInfoFunc:        func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: memory}, nvml.SUCCESS },
	}
}

// node is a machine of which the driver is a tree.
func node(t testing.TB, machine string, driver *gputest.Tree) gpu.Node {
	t.Helper()
	return gpu.Node{
		Mode: gpu.ModeAuto, Host: host.At(driver.Root), Locks: lease.Dir(filepath.Join(t.TempDir(), "locks")),
		Helper: []string{"/proc/self/exe", "helper", machine, driver.Root}, HelperEnv: os.Environ(),
		CDIDirs: []string{driver.Path("etc/cdi"), driver.Path("var/run/cdi")},
	}
}

// image is a root directory, and a specification as package oci makes it, in
// short.
func image(t testing.TB, env ...string) (string, *specs.Spec) {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root, &specs.Spec{
		Process: &specs.Process{Env: append([]string{"PATH=/bin"}, env...), User: specs.User{UID: 1000, GID: 1000}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/dev", Type: "tmpfs"}, {Destination: "/out", Type: "bind", Source: "/scratch"}},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}},
	}
}

// render is everything that a container has been given.
func render(t *testing.T, driver *gputest.Tree, root string, spec *specs.Spec) string {
	t.Helper()
	var b strings.Builder
	for _, kv := range spec.Process.Env[1:] {
		fmt.Fprintf(&b, "env %s\n", kv)
	}
	if g := spec.Process.User.AdditionalGids; len(g) > 0 {
		fmt.Fprintf(&b, "groups %v\n", g)
	}
	for _, d := range spec.Linux.Devices {
		fmt.Fprintf(&b, "node %s %s %d:%d mode %o owner %d:%d\n", d.Path, d.Type, d.Major, d.Minor, d.FileMode.Perm(), *d.UID, *d.GID)
	}
	for _, r := range spec.Linux.Resources.Devices {
		number := func(n *int64) string {
			if n == nil {
				return "*"
			}
			return fmt.Sprint(*n)
		}
		fmt.Fprintf(&b, "rule allow=%v %s %s:%s %s\n", r.Allow, cmp.Or(r.Type, "a"), number(r.Major), number(r.Minor), r.Access)
	}
	for _, m := range spec.Mounts {
		if m.Source != "" && m.Source != "/scratch" {
			fmt.Fprintf(&b, "mount %s from %s %s\n", m.Destination, strings.TrimPrefix(m.Source, driver.Root), strings.Join(m.Options, ","))
		}
	}
	if spec.Hooks != nil {
		t.Error("there are hooks")
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, root)
		if d.Type() == fs.ModeSymlink {
			target, err := os.Readlink(path)
			fmt.Fprintf(&b, "link %s -> %s\n", name, target)
			return err
		}
		data, err := os.ReadFile(path)
		if name != "/etc/ld.so.cache" {
			fmt.Fprintf(&b, "file %s: %q\n", name, data)
			return err
		}
		cache, err := ldcache.Parse(data)
		if err == nil {
			for _, e := range cache.Entries {
				fmt.Fprintf(&b, "cache %s => %s\n", e.Name, e.Path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != text {
		t.Errorf("differs from %s (%v):\n%s\n(-update writes it)", path, err, text)
	}
}

func cuda(n int) device.Request { return device.Request{Stack: device.CUDA, Count: n} }

func assigned(n int, devices string) device.Request {
	r := cuda(n)
	r.Assigned = &device.Assignment{Variable: "CUDA_VISIBLE_DEVICES", Devices: devices}
	return r
}

func TestGoldenEdits(t *testing.T) {
	for name, c := range map[string]struct {
		machine string
		request device.Request
		env     []string
		prepare func(*gputest.Tree)
	}{
		"one-of-eight":   {machine: "dgxa100", request: cuda(1)},
		"eight-of-eight": {machine: "dgxh100", request: device.Request{Stack: device.CUDA, Count: 8, Targets: []string{"9.0"}, VRAM: 80 << 30, DriverVersion: "12.0"}},
		"mig-by-name": {machine: "dgxa100-mig", request: assigned(2, "MIG-0,MIG-3"), prepare: func(d *gputest.Tree) {
			for _, c := range []struct {
				path  string
				minor int
			}{{"gi1", 12}, {"gi1/ci0", 13}, {"gi6", 30}, {"gi6/ci0", 31}} {
				d.File("proc/driver/nvidia/capabilities/gpu0/mig/"+c.path+"/access", fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: 292\nDeviceFileModify: 1\n", c.minor))
			}
			d.Node("dev/nvidia-caps/nvidia-cap12", gputest.Caps, 12)
		}},
		"uuids":        {machine: "dgxb200", request: assigned(2, "GPU-00000005-0000-0000-0000-000000000000,GPU-00000002")},
		"utility-only": {machine: "dgxa100", request: cuda(1), env: []string{"NVIDIA_DRIVER_CAPABILITIES=utility", "NVIDIA_VISIBLE_DEVICES=7"}},
		// Nodes that are missing are still given, with the owner that the driver's
		// parameters say; sockets are given if they are there.
		"no-nodes-yet": {machine: "dgxa100", request: cuda(1), prepare: func(d *gputest.Tree) {
			d.Remove("dev/nvidia0")
			d.Remove("proc/driver/nvidia/gpus")
			d.File("run/nvidia-persistenced/socket", "")
			d.File("tmp/nvidia-mps/control", "")
		}},
		// As Debian installs it: the libraries in a directory of their own.
		"debian": {machine: "dgxa100", request: cuda(1), prepare: func(d *gputest.Tree) {
			own := gputest.LibDir + "/nvidia/current/"
			d.File(own+"x", "")
			for _, lib := range []string{"libcuda", "libnvidia-ml"} {
				if err := os.Rename(d.Path(gputest.LibDir+"/"+lib+".so."+gputest.Version), d.Path(own+lib+".so."+gputest.Version)); err != nil {
					panic(err)
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			driver := gputest.New(t, 8)
			if c.prepare != nil {
				c.prepare(driver)
			}
			n := node(t, c.machine, driver)
			g, err := n.Allocate(t.Context(), c.request, lease.Owner{UUID: "container"})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Release()
			root, spec := image(t, c.env...)
			notes, err := g.Give(spec, root)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Join(append(append(g.Describe(), g.Notes()...), notes...), "\n") + "\n"
			// What the compiler of this machine made it need.
			text = regexp.MustCompile(`needs \(\S+\)`).ReplaceAllString(text, "needs (X.Y)")
			golden(t, name, text+render(t, driver, root, spec))
		})
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		machine string
		request device.Request
		env     []string
		prepare func(*gputest.Tree)
		kind    error
		want    string
	}{
		"missing driver": {machine: "no library", request: cuda(1), kind: device.ErrNoDriver, want: "libnvidia-ml.so.1 is not installed"},
		"missing driver, no GPU": {machine: "no library", request: cuda(1), prepare: func(d *gputest.Tree) {
			d.Remove("sys/bus/pci/devices")
			d.File("sys/bus/pci/devices/none", "")
		}, kind: device.ErrNone, want: "this node has no GPU of NVIDIA"},
		"module not loaded":     {machine: "no module", request: cuda(1), kind: device.ErrNoDriver, want: "the NVIDIA kernel module is not loaded"},
		"half loaded, versions": {machine: "mismatch", request: cuda(1), kind: device.ErrNoDriver, want: "have different versions: reboot the node"},
		"half loaded, UVM": {machine: "dgxa100", request: cuda(1), prepare: func(d *gputest.Tree) {
			d.File("proc/devices", "Character devices:\n195 nvidia-frontend\n")
		}, kind: device.ErrNoDriver, want: "nvidia-uvm, without which CUDA does not work, is not loaded"},
		"half loaded, files": {machine: "dgxa100", request: cuda(1), prepare: func(d *gputest.Tree) {
			d.Remove(gputest.LibDir + "/libcuda.so." + gputest.Version)
		}, kind: device.ErrNoDriver, want: "its files libcuda.so.550.54.15 are not on this node"},
		"half loaded, MIG": {machine: "dgxa100-mig", request: assigned(1, "MIG-0"), kind: device.ErrNoDriver, want: "MIG instance 0:0: "},
		"a stale node": {machine: "dgxa100", request: cuda(1), prepare: func(d *gputest.Tree) {
			d.Remove("dev/nvidia-uvm")
			d.Node("dev/nvidia-uvm", 511, 0)
		}, kind: device.ErrNoDriver, want: "is device 511:0, the driver's is 510:0: remove it"},
		"old driver":        {machine: "dgxa100", request: device.Request{Stack: device.CUDA, Count: 1, DriverVersion: "12.5"}, kind: device.ErrUnsuitable, want: "it asks for CUDA 12.5, the driver of this node (550.54.15) has 12.4"},
		"old driver, image": {machine: "dgxa100", request: cuda(1), env: []string{"NVIDIA_REQUIRE_CUDA=cuda>=12.6 brand=tesla,driver>=535,driver<536"}, kind: device.ErrUnsuitable, want: "the image asks for NVIDIA_REQUIRE_CUDA=cuda>=12.6"},
		"old hardware":      {machine: "dgxa100", request: device.Request{Stack: device.CUDA, Count: 1, Targets: []string{"9.0"}}, kind: device.ErrUnsuitable, want: "has compute capability 8.0, 9.0 is asked for"},
		"too small":         {machine: "dgxa100", request: device.Request{Stack: device.CUDA, Count: 1, VRAM: 80 << 30}, kind: device.ErrUnsuitable, want: "bytes of memory"},
		"too many":          {machine: "dgxa100", request: cuda(9), kind: device.ErrUnsuitable, want: "it needs 9 GPUs, this node has 8 that would do"},
		"one is lost":       {machine: "one lost", request: cuda(8), kind: device.ErrUnsuitable, want: "this node has 7 that would do"},
		"assigned and lost": {machine: "one lost", request: assigned(1, "0"), kind: device.ErrUnsuitable, want: "no GPU \"0\"; it has 1, 2"},
		"fewer assigned":    {machine: "dgxa100", request: assigned(2, "3"), kind: device.ErrUnsuitable, want: "it needs 2 GPUs, the scheduler has assigned 1"},
		"assigned twice":    {machine: "dgxa100", request: assigned(2, "3,3"), kind: device.ErrUnsuitable, want: "names GPU 3 twice"},
		"whole GPU in MIG":  {machine: "dgxa100-mig", request: assigned(1, "0"), kind: device.ErrUnsuitable, want: "split up by MIG"},
		"assigned, unfit":   {machine: "dgxa100", request: func() device.Request { r := assigned(1, "0"); r.Targets = []string{"9.0"}; return r }(), kind: device.ErrUnsuitable, want: "compute capability"},
		"unknown stack":     {machine: "dgxa100", request: device.Request{Stack: "opencl", Count: 1}, kind: device.ErrRequest, want: `"opencl"`},
		"no AMD":            {machine: "dgxa100", request: device.Request{Stack: device.ROCm, Count: 1}, kind: device.ErrNone, want: "this node has no GPU of AMD"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			driver := gputest.New(t, 8)
			if c.prepare != nil {
				c.prepare(driver)
			}
			n := node(t, c.machine, driver)
			g, err := n.Allocate(t.Context(), c.request, lease.Owner{UUID: "container"})
			if err == nil {
				root, spec := image(t, c.env...)
				_, err = g.Give(spec, root)
				if err := g.Release(); err != nil {
					t.Error(err)
				}
			}
			if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%v", err)
			}
			// Whoever was refused holds nothing.
			names, _ := filepath.Glob(string(n.Locks) + "/*")
			for _, name := range names {
				if text, _ := os.ReadFile(name); len(text) > 0 {
					t.Errorf("%s holds %s", name, text)
				}
			}
		})
	}
}

// More than asked for, or what another container has: the scheduler is obeyed,
// and it is said.
func TestSchedulerIsObeyed(t *testing.T) {
	driver := gputest.New(t, 8)
	n := node(t, "dgxa100", driver)
	first, err := n.Allocate(t.Context(), cuda(1), lease.Owner{UUID: "first"})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Release()
	second, err := n.Allocate(t.Context(), assigned(1, "0,5"), lease.Owner{UUID: "second"})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Release()
	notes := strings.Join(second.Notes(), "\n")
	for _, want := range []string{"has assigned 2 GPUs (CUDA_VISIBLE_DEVICES=0,5), the container asked for 1", "warning: GPU 0, assigned by the scheduler, is also in use by container first"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no %q in %q", want, notes)
		}
	}
	if len(second.Devices()) != 2 {
		t.Errorf("devices %v", second.Devices())
	}
}

// A mount of the container's own where the driver must be is its own mistake;
// where only a socket would be, it wins.
func TestMountsInTheWay(t *testing.T) {
	driver := gputest.New(t, 8)
	driver.File("tmp/nvidia-mps/control", "")
	n := node(t, "dgxa100", driver)
	g, err := n.Allocate(t.Context(), cuda(1), lease.Owner{UUID: "container"})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Release()
	root, spec := image(t)
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/tmp", Type: "bind", Source: "/scratch"})
	notes, err := g.Give(spec, root)
	if err != nil || !slices.Contains(notes, "/tmp/nvidia-mps is not given to the container: its mount at /tmp is in the way") {
		t.Errorf("%q, %v", notes, err)
	}
	root, spec = image(t)
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/usr/lib", Type: "bind", Source: "/scratch"})
	if _, err := g.Give(spec, root); !errors.Is(err, device.ErrRequest) || !strings.Contains(err.Error(), "the container's mount at /usr/lib is where the GPU driver's /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15 must be") {
		t.Error(err)
	}
}

func TestOff(t *testing.T) {
	n := gpu.Node{Mode: gpu.ModeOff}
	if _, err := n.Allocate(t.Context(), cuda(1), lease.Owner{}); !errors.Is(err, gpu.ErrOff) {
		t.Error(err)
	}
}

// The inventory survives the way from the helper.
func TestInventoryIsJSON(t *testing.T) {
	driver := gputest.New(t, 8)
	inv, h, _, err := node(t, "dgxa100-mig", driver).Inventory(t.Context(), device.CUDA)
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	text, err := json.Marshal(inv)
	if err != nil || len(inv.Devices) != 11 || !strings.Contains(string(text), `"instance":{"index":3,"parent":"GPU-00000000-0000-0000-0000-000000000000","gpu_instance":6,"compute_instance":0}`) {
		t.Errorf("%s, %v", text, err)
	}
}

// BenchmarkStart is what GPUs add to the start of a container: finding, choosing
// and giving them, with a driver that answers at once.
func BenchmarkStart(b *testing.B) {
	driver := gputest.New(b, 8)
	n := node(b, "dgxa100", driver)
	for b.Loop() {
		g, err := n.Allocate(b.Context(), cuda(2), lease.Owner{UUID: "container"})
		if err != nil {
			b.Fatal(err)
		}
		root, spec := image(b)
		if _, err := g.Give(spec, root); err != nil {
			b.Fatal(err)
		}
		if err := g.Release(); err != nil {
			b.Fatal(err)
		}
	}
}
