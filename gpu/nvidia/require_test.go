package nvidia

import (
	"errors"
	"strings"
	"testing"

	"crunch-oci/gpu/device"
)

func TestCheckRequirements(t *testing.T) {
	inv := device.Inventory{Driver: "535.183.01", Version: "12.2"}
	a100 := []device.Device{{Name: "NVIDIA A100-SXM4-40GB", Target: "8.0"}}
	for _, c := range []struct {
		env, ok string // ok: "yes", "no", or yes with a note
	}{
		{"NVIDIA_REQUIRE_CUDA=", "yes"},
		{"NVIDIA_REQUIRE_CUDA=cuda>=11.8", "yes"},
		{"NVIDIA_REQUIRE_CUDA=cuda>=12.4", "no"},
		// As in NVIDIA's images: forward compatibility of data centre GPUs.
		{"NVIDIA_REQUIRE_CUDA=cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=tesla,driver>=535,driver<536 brand=geforce,driver>=535,driver<536", "yes"},
		{"NVIDIA_REQUIRE_CUDA=cuda>=12.4 brand=geforce,driver>=535,driver<536", "no"},
		{"NVIDIA_REQUIRE_ARCH=arch>=9.0", "no"},
		{"NVIDIA_REQUIRE_X=driver!=535.183.01", "no"},
		{"NVIDIA_REQUIRE_X=driver=535.183.1", "yes"},
		{"NVIDIA_REQUIRE_X=brand!=geforce", "yes"},
		{"NVIDIA_REQUIRE_X=brand==tesla", "yes"},
		{"NVIDIA_REQUIRE_X=cuda<=12.2,cuda<13,cuda>12", "yes"},
		{"NVIDIA_REQUIRE_X=moon>=3", "is not known"},
		{"NVIDIA_REQUIRE_X=nonsense", "is not understood"},
		{"NVIDIA_REQUIRE_X=cuda>=new", "yes"},
		{"OTHER=cuda>=99", "yes"},
	} {
		notes, err := CheckRequirements([]string{"A=b", c.env}, inv, a100)
		switch c.ok {
		case "no":
			if !errors.Is(err, device.ErrUnsuitable) || !strings.Contains(err.Error(), c.env) {
				t.Errorf("%s: %v", c.env, err)
			}
			if _, err := CheckRequirements([]string{c.env, "NVIDIA_DISABLE_REQUIRE=1"}, inv, a100); err != nil {
				t.Errorf("%s, disabled: %v", c.env, err)
			}
		case "yes":
			if err != nil || len(notes) > 0 {
				t.Errorf("%s: %q, %v", c.env, notes, err)
			}
		default:
			if err != nil || len(notes) != 1 || !strings.Contains(notes[0], c.ok) {
				t.Errorf("%s: %q, %v", c.env, notes, err)
			}
		}
	}
}

func TestCapabilitiesOf(t *testing.T) {
	both := Capabilities{true, true}
	for _, c := range []struct {
		env   []string
		want  Capabilities
		notes int
	}{
		{nil, both, 0},
		{[]string{"NVIDIA_DRIVER_CAPABILITIES="}, both, 0},
		{[]string{"NVIDIA_DRIVER_CAPABILITIES=all"}, both, 0},
		{[]string{"NVIDIA_DRIVER_CAPABILITIES=compute, utility,graphics"}, both, 0},
		{[]string{"NVIDIA_DRIVER_CAPABILITIES=compute,video"}, Capabilities{Compute: true}, 0},
		{[]string{"NVIDIA_DRIVER_CAPABILITIES=utility"}, Capabilities{Utility: true}, 0},
		{[]string{"NVIDIA_DRIVER_CAPABILITIES=compute", "NVIDIA_DRIVER_CAPABILITIES=utility"}, Capabilities{Utility: true}, 0},
		{[]string{"NVIDIA_DRIVER_CAPABILITIES=graphics"}, both, 1},
	} {
		if got, notes := CapabilitiesOf(c.env); got != c.want || len(notes) != c.notes {
			t.Errorf("%q: %+v, %q", c.env, got, notes)
		}
	}
}

func FuzzCheckRequirements(f *testing.F) {
	f.Add("cuda>=12.4 brand=tesla,driver>=470,driver<471")
	f.Add("cuda>=,=,<>=!!")
	inv := device.Inventory{Driver: "535.183.01", Version: "12.2"}
	f.Fuzz(func(t *testing.T, text string) {
		_, err := CheckRequirements([]string{"NVIDIA_REQUIRE_CUDA=" + text, "NVIDIA_DRIVER_CAPABILITIES=" + text}, inv, []device.Device{{Name: text, Target: text}})
		if err != nil && !errors.Is(err, device.ErrUnsuitable) {
			t.Error(err)
		}
	})
}
