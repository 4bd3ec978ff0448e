package config

import (
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var program = Program{Name: "crunch-run", Version: "1.2.3"}

func readVectors(t *testing.T, key string, dst any) {
	t.Helper()
	data, err := os.ReadFile("../../testdata/spec/cli-and-dispatch.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(all[key], dst); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
}

func parse(p Program, args ...string) (f Flags, exit *Exit, stdout, stderr string) {
	var out, errs strings.Builder
	f, exit = ParseFlags(p, args, &out, &errs)
	return f, exit, out.String(), errs.String()
}

func TestFlagVectors(t *testing.T) {
	var want []struct{ Name, Type, Default string }
	readVectors(t, "flags", &want)
	var f Flags
	set := f.flagSet(program, new(bool), new(bool), new(bool))
	bad := map[string]string{"bool": "maybe", "int": "x", "duration": "10"}
	for _, w := range want {
		def := set.Lookup(w.Name)
		if def == nil {
			t.Errorf("no flag -%s", w.Name)
			continue
		}
		if w.Name == "config" {
			w.Default = DefaultClusterFile
		}
		if def.DefValue != w.Default {
			t.Errorf("-%s: default %q, want %q", w.Name, def.DefValue, w.Default)
		}
		if err := def.Value.Set(bad[w.Type]); (err == nil) != (w.Type == "string") {
			t.Errorf("-%s is no %s", w.Name, w.Type)
		}
	}
	if set.Lookup("no-detach") != nil {
		t.Error("-no-detach is a flag")
	}
}

func TestArgumentVectors(t *testing.T) {
	var vectors []struct {
		Args           []string
		ExitCode       int `json:"exit_code"`
		Stdout, Stderr string
	}
	readVectors(t, "arguments", &vectors)
	for _, v := range vectors {
		_, exit, stdout, stderr := parse(program, v.Args...)
		later := v.Stderr == "" && v.Stdout == "" || strings.HasPrefix(v.Stderr, "could not load config file") || strings.HasPrefix(v.Stderr, "decode stdin")
		if later {
			// What happens next is not the command line's business.
			if exit != nil || stdout+stderr != "" {
				t.Errorf("%q: %v %q", v.Args, exit, stderr)
			}
			continue
		}
		if exit == nil || exit.Code != v.ExitCode {
			t.Errorf("%q: %v, want exit status %d", v.Args, exit, v.ExitCode)
		}
		wantOut := strings.ReplaceAll(v.Stdout, "VERSION", "1.2.3 ("+runtime.Version()+")")
		if stdout != wantOut {
			t.Errorf("%q: stdout %q, want %q", v.Args, stdout, wantOut)
		}
		if v.Stderr == "(usage text)" {
			if !strings.HasPrefix(stderr, "Usage: crunch-run [options] container-uuid\n  -") || !strings.Contains(stderr, "\n  -broken-node-hook ") {
				t.Errorf("%q: stderr %q", v.Args, stderr)
			}
		} else if stderr != v.Stderr {
			t.Errorf("%q: stderr %q, want %q", v.Args, stderr, v.Stderr)
		}
	}
}

const uuid = "zzzzz-dz642-000000000000001"

func TestModes(t *testing.T) {
	for _, tc := range []struct {
		args string
		mode Mode
		uuid string
	}{
		{uuid, ModeRun, uuid},
		{"-detach " + uuid, ModeDetach, uuid},
		{"--detach=true short", ModeDetach, "short"},
		{"-no-detach -detach " + uuid, ModeRun, uuid},
		{"-no-detach -kill 15 " + uuid, ModeKill, uuid},
		{"-kill 15 x", ModeKill, "x"},
		{"-detach -kill 15 -list x", ModeDetach, "x"},
		{"-kill 0 -list x", ModeKill, "x"},
		{"-kill -1 -list x y", ModeList, ""},
		{"-list", ModeList, ""},
		{"-list -list=false " + uuid, ModeRun, uuid},
	} {
		f, exit, _, stderr := parse(program, strings.Fields(tc.args)...)
		if exit != nil || f.Mode != tc.mode || f.UUID != tc.uuid {
			t.Errorf("%q: mode %d uuid %q exit %v %s", tc.args, f.Mode, f.UUID, exit, stderr)
		}
	}
}

func TestFlagValues(t *testing.T) {
	args := strings.Fields("--broken-node-hook=/hook -ca-certs /ca --cgroup-parent-subsystem=memory -config=/c -container-enable-networking=always " +
		"-container-network-mode=host -crunchstat-interval=1m30s -enable-memory-limit=false -memprofile=/m -runtime-engine=singularity -sleep 2s " +
		"-stdin-config -stdin-prices -stop-grace=5s -store-dir=/s -store-dir=/s2 " + uuid)
	f, exit, _, stderr := parse(program, append([]string{"-no-detach"}, args...)...)
	if exit != nil {
		t.Fatal(exit, stderr)
	}
	want := Flags{
		UUID: uuid, Args: args, NoDetach: true, BrokenNodeHook: "/hook", CACerts: "/ca", CgroupParentSubsystem: "memory", ClusterConfig: "/c",
		EnableNetworking: "always", NetworkMode: "host", CrunchstatInterval: 90 * time.Second, MemProfile: "/m", RuntimeEngine: "singularity",
		Sleep: 2 * time.Second, StdinConfig: true, StdinPrices: true, KillSignal: -1,
		Settings: map[string]string{"stop-grace": "5s", "store-dir": "/s2"},
	}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("got  %+v\nwant %+v", f, want)
	}
	if f, _, _, _ := parse(Program{Name: "x", ClusterConfig: "/from/env.yml"}, uuid); f.ClusterConfig != "/from/env.yml" {
		t.Error(f.ClusterConfig)
	}
	// A bad site setting is a usage error like any other.
	if _, exit, _, stderr := parse(program, "-stop-grace=21s", uuid); exit == nil || exit.Code != 2 || !strings.Contains(stderr, "flag -stop-grace: must be a duration from 0s to 20s") {
		t.Error(exit, stderr)
	}
}

func TestDispatcherCommandLines(t *testing.T) {
	// What unaware dispatchers send is a run, or its start or end.
	var cloud []struct{ Start, Kill, List string }
	readVectors(t, "dispatch_cloud", &cloud)
	for _, c := range cloud {
		for command, mode := range map[string]Mode{c.Start: ModeDetach, c.Kill: ModeKill, c.List: ModeList} {
			words := strings.Fields(command)
			if words[0] == "sudo" {
				words = words[1:]
			}
			var args []string
			for _, w := range words[1:] {
				args = append(args, strings.Trim(w, "'"))
			}
			// The one argument with a blank in it is not split by a shell here.
			args = slices.DeleteFunc(args, func(s string) bool { return s == "broken.sh" })
			f, exit, _, stderr := parse(program, args...)
			if exit != nil || f.Mode != mode {
				t.Errorf("%s: mode %d, %v %s", command, f.Mode, exit, stderr)
			}
		}
	}
}

func TestSiteFlagsDoNotShadowTheReference(t *testing.T) {
	// A second definition of a flag panics; this names it.
	var reference []struct{ Name string }
	readVectors(t, "flags", &reference)
	for _, r := range reference {
		if findSetting(r.Name) != nil {
			t.Errorf("site setting %s is a flag of the reference", r.Name)
		}
	}
	var _ flag.Value = (*settingFlag)(nil)
}
