package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/gpu/device"
	"crunch-oci/oci"
)

func TestExitStatusLines(t *testing.T) {
	var vectors []struct {
		ExitCode int    `json:"exit_code"`
		Line     string `json:"line"`
	}
	readVectors(t, "exit_status_lines", &vectors)
	w := newWorld(t)
	r := &run{Supervisor: w.sup}
	var want []string
	for _, v := range vectors {
		switch v.ExitCode {
		case 128, 255: // lifecycle section 16: no fake signal
			v.Line, _, _ = strings.Cut(v.Line, " (")
		case -1: // of an engine that we do not have
			continue
		}
		want = append(want, v.Line)
		r.reportEnd(oci.ExitStatus{Code: v.ExitCode})
	}
	if got := strings.Split(strings.TrimSpace(w.said()), "\n"); !slices.Equal(got, want) {
		t.Errorf("differences:\n%s", diff(strings.Join(want, "\n"), strings.Join(got, "\n")))
	}
}

func TestBrokenNodeErrors(t *testing.T) {
	var vectors []struct {
		Error           string
		MarksNodeBroken bool `json:"marks_node_broken"`
	}
	readVectors(t, "broken_node_errors", &vectors)
	for _, v := range vectors {
		if got := suggestsBrokenNode(v.Error); got != v.MarksNodeBroken {
			t.Errorf("%q marks the node as broken: %v", v.Error, got)
		}
	}
	var dispatch []struct {
		Error  string
		Broken bool
	}
	readVectorsOf(t, "cli-and-dispatch.json", "broken_error", &dispatch)
	for _, v := range dispatch {
		if got := suggestsBrokenNode(v.Error); got != v.Broken {
			t.Errorf("%q marks the node as broken: %v", v.Error, got)
		}
	}
}

// The world's container is the one that the scenarios are about, but for the
// image, which is a real one.
func TestBaseContainerRecord(t *testing.T) {
	var base map[string]any
	readVectors(t, "base_container_record", &base)
	w := newWorld(t)
	text, err := json.Marshal(w.api.record)
	if err != nil {
		t.Fatal(err)
	}
	var record map[string]any
	if err := json.Unmarshal(text, &record); err != nil {
		t.Fatal(err)
	}
	for k, v := range base {
		if k != "container_image" && !reflect.DeepEqual(record[k], v) {
			t.Errorf("%s: %v, want %v", k, record[k], v)
		}
	}
}

func TestStartAdvice(t *testing.T) {
	var vectors []struct {
		Error       string
		AdviceAdded bool `json:"advice_added"`
	}
	readVectors(t, "start_advice", &vectors)
	for _, v := range vectors {
		want := ""
		if v.AdviceAdded {
			want = "\nPossible causes: command \"cmd 1\" is missing, the interpreter given in #! is missing, or script has Windows line endings."
		}
		if got := advice(fmt.Errorf("start: %w", &oci.StartError{Command: "cmd 1", Reason: v.Error})); got != want {
			t.Errorf("%q: advice %q", v.Error, got)
		}
	}
	if got := advice(errors.New("exec: no such file or directory")); got != "" {
		t.Errorf("advice %q although the command is not at fault", got)
	}
}

func TestContainerSpec(t *testing.T) {
	var vectors []struct {
		Name              string
		Container         map[string]any
		EnableMemoryLimit bool              `json:"enable_memory_limit"`
		EnableNetworking  string            `json:"container_enable_networking"`
		Environment       map[string]string `json:"supervisor_environment"`
		Spec              struct {
			Env            map[string]string
			NetworkEnabled bool   `json:"network_enabled"`
			WorkingDir     string `json:"working_dir"`
			GPUs           int    `json:"gpu_device_count"`
			GPUStack       string `json:"gpu_stack"`
		}
		Docker struct{ Memory, MemorySwap, NanoCPUs int64 } `json:"docker_host_config"`
		Stdin  string                                       `json:"stdin_bytes"`
	}
	readVectors(t, "container_spec", &vectors)
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			w := newWorld(t)
			for k, value := range v.Container {
				if k == "mounts" {
					for target, m := range value.(map[string]any) {
						w.mount(target, m.(map[string]any))
					}
					continue
				}
				w.api.record[k] = value
			}
			w.sup.Limits.IgnoreRAM = !v.EnableMemoryLimit
			w.sup.APIEnv = map[string]string{}
			for _, name := range []string{"ARVADOS_API_HOST", "ARVADOS_API_HOST_INSECURE", "ARVADOS_KEEP_SERVICES"} {
				w.sup.APIEnv[name] = v.Environment[name]
			}
			// Who decides on the network is asked with what the record says.
			w.sup.Network = func(api bool) (Network, error) {
				if got := api || v.EnableNetworking == "always"; got != v.Spec.NetworkEnabled {
					t.Errorf("network enabled: %v", got)
				}
				return Network{Kind: oci.NetworkNone}, nil
			}
			stdin := make(chan string, 1)
			w.runtime.program = func(g *guest) int {
				text, err := io.ReadAll(g.stdin)
				if err != nil {
					return 1
				}
				stdin <- string(text)
				return 0
			}
			w.run()
			w.ends(arvados.StateComplete, 0, "")
			if got := <-stdin; got != v.Stdin {
				t.Errorf("stdin %q, want %q", got, v.Stdin)
			}
			var asked []device.Request
			if v.Spec.GPUs > 0 {
				asked = []device.Request{{Stack: device.Stack(v.Spec.GPUStack), Count: v.Spec.GPUs}}
			}
			if got := w.sup.GPUs.(*fakeGPUs).asked; !reflect.DeepEqual(got, asked) {
				t.Errorf("asked for GPUs: %+v, want %+v", got, asked)
			}
			spec := w.runtime.made[0].guest.spec
			for name, value := range v.Spec.Env {
				value = strings.Replace(value, "/secret/", "/secretsecret/", 1) // the token
				if !slices.Contains(spec.Process.Env, name+"="+value) {
					t.Errorf("%s=%s is not in %q", name, value, spec.Process.Env)
				}
			}
			for _, kv := range spec.Process.Env {
				name, _, _ := strings.Cut(kv, "=")
				if _, ok := v.Spec.Env[name]; !ok && !slices.Contains([]string{"PATH", "IMAGE", "HOSTNAME", "HOME", "ROOT"}, name) {
					t.Errorf("%s is in the environment", kv)
				}
			}
			// A relative directory is the image's (lifecycle section 16).
			want := map[string]string{"": "/work", "/bin": "/bin", "sub": "/work/sub"}[v.Spec.WorkingDir]
			if spec.Process.Cwd != want {
				t.Errorf("working directory %q, want %q", spec.Process.Cwd, want)
			}
			var got struct{ Memory, MemorySwap, NanoCPUs int64 }
			if m := spec.Linux.Resources.Memory; m != nil {
				got.Memory, got.MemorySwap = *m.Limit, *m.Swap
			}
			if c := spec.Linux.Resources.CPU; c != nil {
				got.NanoCPUs = *c.Quota * 1e9 / int64(*c.Period)
			}
			if got != v.Docker {
				t.Errorf("limits %+v, want %+v", got, v.Docker)
			}
		})
	}
}
