package oci_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crunch-oci/cgroups"
	"crunch-oci/oci"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func readVectors(t *testing.T, v any) {
	t.Helper()
	b, err := os.ReadFile("../testdata/spec/lifecycle.json")
	must(t, err)
	must(t, json.Unmarshal(b, v))
}

// The limits the reference hands to Docker, and what Docker makes of them.
func TestContainerSpecVectors(t *testing.T) {
	var vectors struct {
		ContainerSpec []struct {
			Name string `json:"name"`
			Spec struct {
				Env        map[string]string `json:"env"`
				RAM        int64             `json:"ram"`
				VCPUs      int64             `json:"vcpus"`
				WorkingDir string            `json:"working_dir"`
			} `json:"spec"`
			Docker struct {
				Memory, MemorySwap, NanoCPUs int64
			} `json:"docker_host_config"`
		} `json:"container_spec"`
	}
	readVectors(t, &vectors)
	if len(vectors.ContainerSpec) == 0 {
		t.Fatal("no vectors")
	}
	root := t.TempDir()
	for _, v := range vectors.ContainerSpec {
		t.Run(v.Name, func(t *testing.T) {
			spec, err := oci.NewSpec(oci.Request{
				Image: ocispec.ImageConfig{WorkingDir: "/image/dir"}, RootfsPath: root, Hostname: "box",
				Command: []string{"cmd"}, Env: v.Spec.Env, Cwd: v.Spec.WorkingDir,
				Limits: oci.Limits{RAM: v.Spec.RAM, NanoCPUs: v.Spec.VCPUs * 1e9},
			})
			must(t, err)
			var memory, swap, nano int64
			if m := spec.Linux.Resources.Memory; m != nil {
				memory, swap = *m.Limit, *m.Swap
			}
			if c := spec.Linux.Resources.CPU; c != nil {
				nano = *c.Quota * 1e9 / int64(*c.Period)
			}
			if memory != v.Docker.Memory || swap != v.Docker.MemorySwap || nano != v.Docker.NanoCPUs {
				t.Errorf("memory %d, swap %d, CPUs %d; want %+v", memory, swap, nano, v.Docker)
			}
			for name, value := range v.Spec.Env {
				if !strings.Contains("\n"+strings.Join(spec.Process.Env, "\n")+"\n", "\n"+name+"="+value+"\n") {
					t.Errorf("%s is not in the environment", name)
				}
			}
			// Docker refuses a relative directory; here it is what the
			// documentation says, relative to the image's.
			want := map[string]string{"": "/image/dir", "/bin": "/bin", "sub": "/image/dir/sub"}[v.Spec.WorkingDir]
			if spec.Process.Cwd != want {
				t.Errorf("cwd %q, want %q", spec.Process.Cwd, want)
			}
		})
	}
}

// The whole specification, to be read in a review.
func TestGoldenSpec(t *testing.T) {
	if cgroups.Unified() {
		t.Skip("the golden file is of a cgroup v1 node, whose containers have no cgroup namespace")
	}
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	write(t, filepath.Join(root, "etc/passwd"), "alice:x:1000:1000::/home/alice:/bin/sh\n")
	spec, err := oci.NewSpec(oci.Request{
		Image: ocispec.ImageConfig{
			Entrypoint: []string{"/entry"}, Cmd: []string{"unused"}, User: "alice", WorkingDir: "/srv", Env: []string{"A=1", "PATH=/opt/bin:/bin"},
		},
		RootfsPath:  root,
		Command:     []string{"run", "it"},
		Env:         map[string]string{"B": "2", "A": "3"},
		Hostname:    "zzzzz-dz642-abc",
		Mounts:      []oci.Mount{{Source: "/host/out", Target: "/out"}, {Source: "/host/in", Target: "/keep/by_id", ReadOnly: true}},
		Limits:      oci.Limits{NanoCPUs: 2e9, RAM: 1 << 30},
		CgroupsPath: "/crunch-run/zzzzz-dz642-abc",
		NoSeccomp:   true, // the profile has tests of its own
	})
	must(t, err)
	got, err := json.MarshalIndent(spec, "", "  ")
	must(t, err)
	got = append(bytes.ReplaceAll(got, []byte(root), []byte("/rootfs")), '\n')
	const golden = "testdata/spec.json"
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(golden, got, 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s; run the test with -update and read the difference:\n%s", golden, got)
	}
}

func TestSeccompProfileKnowsCapabilities(t *testing.T) {
	spec, err := oci.NewSpec(oci.Request{RootfsPath: t.TempDir(), Hostname: "box", Command: []string{"x"}})
	must(t, err)
	allowed := make(map[string]bool)
	for _, call := range spec.Linux.Seccomp.Syscalls {
		for _, name := range call.Names {
			allowed[name] = allowed[name] || call.Action == "SCMP_ACT_ALLOW" && len(call.Args) == 0
		}
	}
	// chroot comes with CAP_SYS_CHROOT; mount would need CAP_SYS_ADMIN.
	for name, want := range map[string]bool{"read": true, "chroot": true, "mount": false, "bpf": false, "reboot": false, "clone3": false} {
		if allowed[name] != want {
			t.Errorf("%s allowed: %v", name, allowed[name])
		}
	}
}

func TestSpecErrorsOfTheCaller(t *testing.T) {
	good := oci.Request{RootfsPath: t.TempDir(), Hostname: "box", Command: []string{"x"}}
	for name, edit := range map[string]func(*oci.Request){
		"relative root":      func(r *oci.Request) { r.RootfsPath = "rootfs" },
		"no host name":       func(r *oci.Request) { r.Hostname = "" },
		"relative source":    func(r *oci.Request) { r.Mounts = []oci.Mount{{Source: "x", Target: "/x"}} },
		"negative RAM":       func(r *oci.Request) { r.Limits.RAM = -1 },
		"negative CPUs":      func(r *oci.Request) { r.Limits.NanoCPUs = -1 },
		"negative /dev/shm":  func(r *oci.Request) { r.Limits.Shm = -1 },
		"missing root":       func(r *oci.Request) { r.RootfsPath += "/missing" },
		"root is not a path": func(r *oci.Request) { r.RootfsPath = "" },
	} {
		req := good
		edit(&req)
		if _, err := oci.NewSpec(req); err == nil || errors.Is(err, oci.ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEditsStopAtTheFirstError(t *testing.T) {
	spec, err := oci.NewSpec(oci.Request{RootfsPath: t.TempDir(), Hostname: "box", Command: []string{"x"}})
	must(t, err)
	ran := 0
	count := func(err error) oci.Edit {
		return func(*specsSpec) error { ran++; return err }
	}
	if err := oci.Apply(spec, count(nil), count(errTest), count(nil)); !errors.Is(err, errTest) || ran != 2 {
		t.Errorf("%v after %d edits", err, ran)
	}
}

func TestExitStatusVectors(t *testing.T) {
	var vectors struct {
		Lines []struct {
			ExitCode int    `json:"exit_code"`
			Line     string `json:"line"`
		} `json:"exit_status_lines"`
	}
	readVectors(t, &vectors)
	if len(vectors.Lines) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Lines {
		// Improved upon: no signal -1 (lifecycle.md section 16).
		want := strings.TrimSuffix(v.Line, " (signal -1)")
		if got := "Container exited with status code " + (oci.ExitStatus{Code: v.ExitCode}).String(); got != want {
			t.Errorf("%d: %q, want %q", v.ExitCode, got, want)
		}
	}
}

func TestStartAdviceVectors(t *testing.T) {
	var vectors struct {
		Advice []struct {
			Error string `json:"error"`
			Added bool   `json:"advice_added"`
		} `json:"start_advice"`
	}
	readVectors(t, &vectors)
	if len(vectors.Advice) == 0 {
		t.Fatal("no vectors")
	}
	const want = `Possible causes: command "foobar" is missing, the interpreter given in #! is missing, or script has Windows line endings.`
	for _, v := range vectors.Advice {
		got := oci.StartAdvice(v.Error, "foobar")
		if v.Added && got != want || !v.Added && got != "" {
			t.Errorf("%q: advice %q", v.Error, got)
		}
	}
}

func TestBundleFiles(t *testing.T) {
	req := newRequest(t, newID(), "true")
	req.Env = map[string]string{"TOKEN": "secret"}
	spec, err := oci.NewSpec(req)
	must(t, err)
	dir := filepath.Join(t.TempDir(), "a", "bundle")
	must(t, oci.WriteBundle(dir, spec))
	for name, want := range map[string]string{"config.json": "-rw-------", "hosts": "-rw-r--r--", "hostname": "-rw-r--r--", "resolv.conf": "-rw-r--r--", ".": "drwx------"} {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if got := fmt.Sprint(info.Mode()); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	must(t, oci.WriteBundle(dir, spec)) // again, over it
}

func TestCreateFromBadBundle(t *testing.T) {
	r := &oci.Runtime{StateDir: t.TempDir()}
	for name, content := range map[string]string{"no JSON": "{", "empty object": "{}", "no args": `{"root":{"path":"x"},"process":{"cwd":"/"},"linux":{}}`} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "config.json"), content)
		if _, err := r.Create(t.Context(), "x", dir, oci.Stdio{}); err == nil || !strings.Contains(err.Error(), "bundle") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.Create(t.Context(), "x", t.TempDir(), oci.Stdio{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
