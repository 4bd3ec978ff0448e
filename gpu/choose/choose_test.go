package choose

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"crunch-oci/gpu/device"
)

// node has n GPUs, two of each pair connected, four to a socket; GPU 6 and 7, if
// they are there, are split up in two and three.
func node(n int, mig bool) device.Inventory {
	inv := device.Inventory{Stack: device.CUDA, Driver: "550.54.15", Version: "12.4"}
	for i := range n {
		d := device.Device{Stack: device.CUDA, Index: i, Minor: i, UUID: fmt.Sprintf("GPU-%d%d%d%d-aaaa", i, i, i, i), NUMA: i / 4, Memory: 40 << 30, Target: "8.0"}
		d.MIGMode = mig && i >= 6
		inv.Devices = append(inv.Devices, d)
		for j := 0; d.MIGMode && j < i-4; j++ {
			inv.Devices = append(inv.Devices, device.Device{
				Index: i, Minor: i, UUID: fmt.Sprintf("MIG-%d%d", i, j), NUMA: d.NUMA, Memory: uint64(20-5*j) << 30, Target: "8.0",
				Instance: &device.Instance{Index: j, Parent: d.UUID, GPU: j + 1, Compute: 0},
			})
		}
		if i%2 == 1 {
			inv.Links = append(inv.Links, device.Link{A: inv.Devices[i-1].UUID, B: d.UUID, Score: 4000})
		}
	}
	return inv
}

func TestAssigned(t *testing.T) {
	inv := node(8, true)
	for _, c := range []struct{ devices, want string }{
		{"0", "0"},
		{"3,5", "3, 5"},
		{"5, 3", "5, 3"}, // the scheduler's order
		{"GPU-2222-aaaa", "2"},
		{"gpu-2222-AAAA", "2"},
		{"GPU-3", "3"}, // CUDA's abbreviation
		{"MIG-71", "7:1"},
		{"7:1,6:0", "7:1, 6:0"},
		{"MIG-GPU-6666-aaaa/2/0", "6:1"},
		{"8", "!no GPU \"8\"; it has 0, 1"},
		{"-1", "!given this job no GPU"},
		{"NoDevFiles", "!given this job no GPU"},
		{"0,,1", "!an entry is empty"},
		{"0,GPU-0000-aaaa", "!names GPU 0 twice"},
		{"GPU-", "!no GPU \"GPU-\""},
		{"MIG-7", "!may be more than one"},
		{"7", "!split up by MIG: one of its instances must be named, such as 7:0"},
		{"7:3", "!no GPU \"7:3\""},
		{"MIG-GPU-6666-aaaa/9/0", "!no GPU"},
		{"MIG-GPU-6666-aaaa", "!is not MIG-GPU-UUID/N/N"},
		{"all", "!no GPU \"all\""},
	} {
		got, err := Assigned(inv, device.Assignment{Variable: "CUDA_VISIBLE_DEVICES", Devices: c.devices})
		if want, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, device.ErrUnsuitable) || !strings.Contains(err.Error(), "CUDA_VISIBLE_DEVICES="+c.devices) {
				t.Errorf("%s: %v, %v", c.devices, List(got), err)
			}
			continue
		}
		if err != nil || List(got) != c.want {
			t.Errorf("%s: %s, %v", c.devices, List(got), err)
		}
	}
}

// Where numbers count what the driver shows, gaps in the indices do not.
func TestAssignedByOrdinal(t *testing.T) {
	inv := device.Inventory{Devices: []device.Device{{Index: 1, UUID: "a"}, {Index: 3, UUID: "b"}}}
	got, err := Assigned(inv, device.Assignment{Devices: "1", Ordinal: true})
	if err != nil || len(got) != 1 || got[0].UUID != "b" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := Assigned(inv, device.Assignment{Devices: "2", Ordinal: true}); err == nil {
		t.Error("no error")
	}
}

func without(devices []device.Device, indices ...int) (free []device.Device) {
	for _, d := range devices {
		used := false
		for _, i := range indices {
			used = used || d.Index == i
		}
		if !used {
			free = append(free, d)
		}
	}
	return free
}

func TestBest(t *testing.T) {
	inv := node(8, false)
	for _, c := range []struct {
		used []int
		n    int
		want string
	}{
		{nil, 1, "0"},
		{nil, 2, "0, 1"},
		{[]int{0}, 2, "2, 3"},    // a pair with a link, not 1 and 2
		{[]int{0}, 1, "1"},       // the one whose partner is gone: no pair is broken
		{[]int{2}, 1, "3"},       // likewise
		{[]int{0, 3}, 2, "4, 5"}, // another pair
		{nil, 4, "0, 1, 2, 3"},   // one socket
		{[]int{1}, 4, "4, 5, 6, 7"},
		{nil, 8, "0, 1, 2, 3, 4, 5, 6, 7"},
	} {
		if got := List(Best(inv, without(inv.Devices, c.used...), c.n)); got != c.want {
			t.Errorf("%d without %v: %s, want %s", c.n, c.used, got, c.want)
		}
	}
}

func TestBestOfMIG(t *testing.T) {
	inv := node(8, true)
	parts, err := Candidates(inv, device.Request{Stack: device.CUDA, Count: 1, VRAM: 12 << 30})
	if err != nil || parts[0].Instance != nil {
		t.Errorf("a node with whole GPUs gives %s, %v", List(parts), err)
	}
	inv.Devices = inv.Devices[6:]
	parts, err = Candidates(inv, device.Request{Stack: device.CUDA, Count: 1, VRAM: 12 << 30})
	if err != nil || List(parts) != "6:0, 6:1, 7:0, 7:1" {
		t.Fatalf("%s, %v", List(parts), err)
	}
	if got := List(Best(inv, parts, 1)); got != "6:1" {
		t.Errorf("the smallest that will do: %s", got)
	}
	if got := List(Best(inv, parts, 2)); got != "6:0, 6:1" {
		t.Errorf("two of one GPU: %s", got)
	}
}

// A node with many small devices is not searched exhaustively.
func TestManyDevices(t *testing.T) {
	inv := node(56, false)
	if got := Best(inv, inv.Devices, 10); len(got) != 10 {
		t.Errorf("%d devices", len(got))
	}
}

func TestCandidates(t *testing.T) {
	inv := node(8, true)
	for _, c := range []struct {
		r    device.Request
		want string
	}{
		{device.Request{Count: 6}, "0, 1, 2, 3, 4, 5"},
		{device.Request{Count: 7}, "!needs 7 GPUs, this node has 6 that would do"},
		{device.Request{Count: 1, VRAM: 40 << 30}, "0, 1, 2, 3, 4, 5"},
		{device.Request{Count: 1, VRAM: 44 << 30}, "0, 1, 2, 3, 4, 5"}, // what ECC takes is forgiven
		{device.Request{Count: 1, VRAM: 80 << 30}, "!GPU 0 () has 42949672960 bytes of memory, 85899345920 are asked for"},
		{device.Request{Stack: device.CUDA, Count: 1, Targets: []string{"9.0"}}, "!compute capability 8.0, 9.0 is asked for"},
		{device.Request{Stack: device.CUDA, Count: 1, Targets: []string{"9.0", "7.5"}}, "0, 1, 2, 3, 4, 5"},
		{device.Request{Stack: device.CUDA, Count: 1, Targets: []string{"any"}}, "0, 1, 2, 3, 4, 5"},
	} {
		got, err := Candidates(inv, c.r)
		if want, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, device.ErrUnsuitable) {
				t.Errorf("%+v: %v, %v", c.r, List(got), err)
			}
		} else if err != nil || List(got) != c.want {
			t.Errorf("%+v: %s, %v", c.r, List(got), err)
		}
	}
	if _, err := Candidates(device.Inventory{}, device.Request{Count: 1}); !errors.Is(err, device.ErrUnsuitable) {
		t.Errorf("an empty node: %v", err)
	}
}

func FuzzAssigned(f *testing.F) {
	f.Add("0,GPU-1,MIG-GPU-6666-aaaa/2/0,7:1", false)
	f.Add("-1", true)
	inv := node(8, true)
	f.Fuzz(func(t *testing.T, text string, ordinal bool) {
		got, err := Assigned(inv, device.Assignment{Variable: "V", Devices: text, Ordinal: ordinal})
		if err == nil && (len(got) == 0 || len(got) != strings.Count(text, ",")+1) {
			t.Errorf("%q gives %s", text, List(got))
		}
	})
}
