//go:build !nonvml

package nvidia_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/gputest"
	"crunch-oci/gpu/host"
	"crunch-oci/gpu/nvidia"
)

// The helper of the tests is this program again.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "helper" {
		var err error
		switch h := host.At(os.Args[3]); os.Args[2] {
		case "stand-in":
			err = nvidia.Serve(os.Stdin, os.Stdout, nvidia.LibraryPath(h), h)
		case "nonsense":
			fmt.Println(strings.Repeat("x", 2<<20))
			fmt.Println("{}")
			time.Sleep(time.Hour) // until it is killed
		case "silent":
			os.Exit(3)
		default:
			err = nvidia.ServeLibrary(os.Stdin, os.Stdout, machines[os.Args[2]](), h)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var machines = map[string]func() nvml.Interface{
	"pairs":  func() nvml.Interface { return connected(false) },
	"switch": func() nvml.Interface { return connected(true) },
}

// connected is a machine of four GPUs: 0 and 1, and 2 and 3, are connected by two
// links each; or all by four links to a switch, but GPU 3 by two only.
func connected(bySwitch bool) *server.Server {
	s := dgxa100.NewWithGPUs(dgxa100.New().Devices[0].(*server.Device).Config, dgxa100.New().Devices[0].(*server.Device).Config,
		dgxa100.New().Devices[0].(*server.Device).Config, dgxa100.New().Devices[0].(*server.Device).Config)
	for i, dev := range s.Devices {
		d := dev.(*server.Device)
		d.UUID = fmt.Sprintf("GPU-%d", i)
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: uint32(i + 1)}, nvml.SUCCESS }
		d.GetNvLinkStateFunc = func(link int) (nvml.EnableState, nvml.Return) {
			switch {
			case link >= 6:
				return 0, nvml.ERROR_INVALID_ARGUMENT
			case link >= 4, i == 3 && link >= 2, !bySwitch && link >= 2:
				return nvml.FEATURE_DISABLED, nvml.SUCCESS
			}
			return nvml.FEATURE_ENABLED, nvml.SUCCESS
		}
		d.GetNvLinkRemotePciInfoFunc = func(int) (nvml.PciInfo, nvml.Return) {
			if bySwitch {
				return nvml.PciInfo{Bus: 0x80}, nvml.SUCCESS
			}
			return nvml.PciInfo{Bus: uint32(i^1) + 1}, nvml.SUCCESS
		}
		d.GetTopologyCommonAncestorFunc = func(other nvml.Device) (nvml.GpuTopologyLevel, nvml.Return) {
			return nvml.TOPOLOGY_HOSTBRIDGE, nvml.SUCCESS
		}
		d.GetSupportedEventTypesFunc = func() (uint64, nvml.Return) { return nvml.EventTypeAll, nvml.SUCCESS }
		d.RegisterEventsFunc = func(types uint64, set nvml.EventSet) nvml.Return { return nvml.SUCCESS }
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED }
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 1234, nvml.SUCCESS }
	}
	events := []nvml.EventData{
		{Device: s.Devices[1], EventType: nvml.EventTypeSingleBitEccError, GpuInstanceId: 0xffffffff, ComputeInstanceId: 0xffffffff},
		{Device: s.Devices[0], EventType: nvml.EventTypeDoubleBitEccError, GpuInstanceId: 2, ComputeInstanceId: 0xffffffff},
		{Device: s.Devices[0], EventType: nvml.EventTypeXidCriticalError, EventData: 48, GpuInstanceId: 0xffffffff, ComputeInstanceId: 0xffffffff},
	}
	set := &mock.EventSet{
		FreeFunc: func() nvml.Return { return nvml.SUCCESS },
		WaitFunc: func(uint32) (nvml.EventData, nvml.Return) {
			if len(events) == 0 {
				return nvml.EventData{}, nvml.ERROR_GPU_IS_LOST
			}
			e := events[0]
			events = events[1:]
			return e, nvml.SUCCESS
		},
	}
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return set, nvml.SUCCESS }
	return s
}

func start(t *testing.T, kind, root string) (*nvidia.Helper, device.Inventory, error) {
	t.Helper()
	h, inv, err := nvidia.StartHelper(t.Context(), "/proc/self/exe", []string{"helper", kind, root}, os.Environ())
	if err == nil {
		t.Cleanup(h.Close)
	}
	return h, inv, err
}

func TestLinks(t *testing.T) {
	for kind, want := range map[string]string{
		"pairs":  "0-1 2020, 0-2 20, 1-2 20, 0-3 20, 1-3 20, 2-3 2020",
		"switch": "0-1 4020, 0-2 4020, 1-2 4020, 0-3 2020, 1-3 2020, 2-3 2020",
	} {
		_, inv, err := start(t, kind, "/")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range inv.Links {
			got = append(got, fmt.Sprintf("%s-%s %d", strings.TrimPrefix(l.A, "GPU-"), strings.TrimPrefix(l.B, "GPU-"), l.Score))
		}
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("%s: %s", kind, s)
		}
	}
}

func TestEventsAndSamples(t *testing.T) {
	h, inv, err := start(t, "pairs", "/")
	if err != nil {
		t.Fatal(err)
	}
	events, notes := make(chan device.Event, 10), make(chan string, 10)
	err = h.Watch(inv.Devices[:2], func(e device.Event) { events <- e }, func(n string) { notes <- n })
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []device.Event{
		{UUID: "GPU-1", Kind: "corrected memory error (single-bit ECC)", Corrected: true, GPUInstance: -1, ComputeInstance: -1},
		{UUID: "GPU-0", Kind: "uncorrectable memory error (double-bit ECC)", GPUInstance: 2, ComputeInstance: -1},
		{UUID: "GPU-0", Kind: "XID 48", XID: 48, GPUInstance: -1, ComputeInstance: -1},
	} {
		if got := <-events; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if note := <-notes; !strings.Contains(note, "not reported any more") {
		t.Errorf("note %q", note)
	}
	got := h.Sample()
	if len(got) != 2 || got[0].UUID != "GPU-0" || got[0].Utilisation != -1 || got[0].Milliwatts != 1234 || got[0].Total != 40960<<20 {
		t.Errorf("%+v", got)
	}
}

// The real library's functions are called, with what it lacks left out.
func TestStandIn(t *testing.T) {
	driver := gputest.New(t, 4)
	driver.Conf("lost", "2")
	h, inv, err := start(t, "stand-in", driver.Root)
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Devices) != 3 || inv.Devices[2].Index != 3 || inv.Devices[2].PCI != "0000:04:00.0" || inv.Devices[2].NUMA != 1 || len(inv.Notes) != 1 || !strings.Contains(inv.Notes[0], "GPU 2 cannot be used: GPU is lost") {
		t.Errorf("%+v", inv)
	}
	if err := h.Watch(inv.Devices, func(device.Event) {}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if got := h.Sample(); len(got) != 3 || got[1].Utilisation != 41 {
		t.Errorf("%+v", got)
	}
}

// A library that crashes, hangs or is no library harms nobody else.
func TestBadLibraries(t *testing.T) {
	for conf, want := range map[string]string{
		"1000": "has ended the process that asked it: SIGABRT",
		"9":    "the NVIDIA kernel module is not loaded",
		"999":  "the NVIDIA driver does not start: an error of the stand-in",
	} {
		driver := gputest.New(t, 1)
		driver.Conf("init", conf)
		if _, _, err := start(t, "stand-in", driver.Root); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", conf, err)
		}
	}
	empty := t.TempDir()
	if _, _, err := start(t, "stand-in", empty); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), "libnvidia-ml.so.1 is not installed") {
		t.Error(err)
	}
	for _, kind := range []string{"nonsense", "silent"} {
		if _, _, err := start(t, kind, empty); !errors.Is(err, device.ErrNoDriver) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	driver := gputest.New(t, 1)
	driver.Conf("init", "1001") // waits for ever
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	time.AfterFunc(50*time.Millisecond, func() { cancel(stopped) })
	if _, _, err := nvidia.StartHelper(ctx, "/proc/self/exe", []string{"helper", "stand-in", driver.Root}, os.Environ()); !errors.Is(err, stopped) {
		t.Errorf("a library that hangs: %v", err)
	}
	if _, _, err := nvidia.StartHelper(t.Context(), "/nonexistent", nil, nil); err == nil {
		t.Error("no program: no error")
	}
}

// A GPU that does not answer any more costs no more than a moment each time.
func TestDriverHangs(t *testing.T) {
	driver := gputest.New(t, 1)
	h, inv, err := start(t, "stand-in", driver.Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Watch(inv.Devices, func(device.Event) {}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if s := h.Sample(); len(s) != 1 {
		t.Fatalf("%+v", s)
	}
	driver.File(gputest.LibDir+"/standin.hang", "")
	for range 2 {
		if s := h.Sample(); s != nil {
			t.Errorf("%+v", s)
		}
	}
	h.Close() // ends it all the same
}

// When the library crashes in the middle that is said, once.
func TestDriverCrashesLater(t *testing.T) {
	driver := gputest.New(t, 1)
	h, inv, err := start(t, "stand-in", driver.Root)
	if err != nil {
		t.Fatal(err)
	}
	notes := make(chan string, 10)
	if err := h.Watch(inv.Devices, func(device.Event) {}, func(n string) { notes <- n }); err != nil {
		t.Fatal(err)
	}
	driver.File(gputest.LibDir+"/standin.crash", "")
	if s := h.Sample(); s != nil {
		t.Errorf("%+v", s)
	}
	if note := <-notes; !strings.Contains(note, "has ended: there are no more statistics") || !strings.Contains(note, "SIGABRT") {
		t.Errorf("note %q", note)
	}
	h.Close()
	if len(notes) > 0 {
		t.Errorf("also %q", <-notes)
	}
}

// After its process is gone a helper has no answers, and does not wait for any.
func TestHelperDies(t *testing.T) {
	h, inv, err := start(t, "pairs", "/")
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	h.Close()
	if err := h.Watch(inv.Devices, func(device.Event) {}, func(string) {}); err == nil {
		t.Error("no error")
	}
	if s := h.Sample(); s != nil {
		t.Errorf("%+v", s)
	}
}
