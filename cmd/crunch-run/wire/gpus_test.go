package wire

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"crunch-oci/gpu/device"
	"crunch-oci/supervisor/config"
)

func TestAssigned(t *testing.T) {
	s := func(text string) *string { return &text }
	for name, c := range map[string]struct {
		env   config.Environment
		stack device.Stack
		want  string
	}{
		"nobody":                   {config.Environment{}, device.CUDA, ""},
		"local dispatcher, none":   {config.Environment{CUDADevices: s("")}, device.CUDA, ""},
		"Slurm":                    {config.Environment{CUDADevices: s("0,1")}, device.CUDA, "CUDA_VISIBLE_DEVICES=0,1"},
		"Slurm, none":              {config.Environment{CUDADevices: s("NoDevFiles")}, device.CUDA, "CUDA_VISIBLE_DEVICES=NoDevFiles"},
		"both":                     {config.Environment{CUDADevices: s("1"), NVIDIADevices: s("0")}, device.CUDA, "CUDA_VISIBLE_DEVICES=1"},
		"in a container":           {config.Environment{NVIDIADevices: s("void")}, device.CUDA, ""},
		"in a container with all":  {config.Environment{NVIDIADevices: s("all")}, device.CUDA, ""},
		"NVIDIA's variable":        {config.Environment{CUDADevices: s(" "), NVIDIADevices: s("GPU-1")}, device.CUDA, "NVIDIA_VISIBLE_DEVICES=GPU-1"},
		"another stack's":          {config.Environment{CUDADevices: s("0,1")}, device.ROCm, ""},
		"AMD, local dispatcher":    {config.Environment{AMDDevices: s("2"), ROCRDevices: s("0")}, device.ROCm, "AMD_VISIBLE_DEVICES=2"},
		"AMD, Slurm":               {config.Environment{ROCRDevices: s("0")}, device.ROCm, "ROCR_VISIBLE_DEVICES=0 ordinal"},
		"AMD, in a container":      {config.Environment{AMDDevices: s("all"), ROCRDevices: s("0")}, device.ROCm, "ROCR_VISIBLE_DEVICES=0 ordinal"},
		"AMD, and a NVIDIA's list": {config.Environment{NVIDIADevices: s("0")}, device.ROCm, ""},
	} {
		got := ""
		if a := assigned(c.env, c.stack); a != nil {
			got = a.Variable + "=" + a.Devices
			if a.Ordinal {
				got += " ordinal"
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// The vectors of containers say which devices a scheduler's assignment means.
func TestAssignedVectors(t *testing.T) {
	text, err := os.ReadFile("../../../testdata/spec/lifecycle.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Specs []struct {
			Name        string
			Environment map[string]string `json:"supervisor_environment"`
			Docker      struct {
				Requests []struct {
					Count int
					IDs   []string `json:"DeviceIDs"`
				} `json:"DeviceRequests"`
			} `json:"docker_host_config"`
		} `json:"container_spec"`
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, v := range all.Specs {
		if len(v.Docker.Requests) == 0 {
			continue
		}
		ran++
		var env config.Environment
		if d, ok := v.Environment["CUDA_VISIBLE_DEVICES"]; ok {
			env.CUDADevices = &d
		}
		var got []string
		if a := assigned(env, device.CUDA); a != nil {
			got = strings.Split(a.Devices, ",")
		}
		if !slices.Equal(got, v.Docker.Requests[0].IDs) {
			t.Errorf("%s: %q", v.Name, got)
		}
	}
	if ran != 2 {
		t.Errorf("%d vectors with GPUs", ran)
	}
}

func TestLibraryEnv(t *testing.T) {
	got := libraryEnv([]string{"PATH=/bin", "ARVADOS_API_TOKEN=secret", "AWS_SECRET_ACCESS_KEY=secret", "GatewayAuthSecret=x", "LD_LIBRARY_PATH=/opt", "PATHS=no", "TMPDIR"})
	if !slices.Equal(got, []string{"PATH=/bin", "LD_LIBRARY_PATH=/opt", "TMPDIR"}) {
		t.Errorf("%q", got)
	}
}
