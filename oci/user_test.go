package oci

import (
	"errors"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/cgroups"
)

// As Docker resolves USER (moby/sys/user, GetExecUser).
func TestResolveUser(t *testing.T) {
	const passwd = "# comment\n+::::::\nroot:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\r\n" +
		"1234:x:77:78::/numeric:/bin/sh\nbroken:x:abc:1::/x:/bin/sh\nshort:x:5\nscant\n  blank:x:8:9:::  \nnohome:x:6:6:::\nneg:x:-1:-1::/:\nalice:x:2:2::/second:/bin/sh\n"
	const group = "root:x:0:\nstaff:x:50:alice,root\nwheel:x:10:root\ndup:x:50:alice\n99:x:11:alice\nbroken:x:z:alice\nshort:x\nempty:x:12\n"
	for _, tc := range []struct {
		spec string
		want identity
		err  bool
	}{
		{spec: "", want: identity{0, 0, []uint32{50, 10}, "/root", "/bin/sh"}},
		{spec: "root", want: identity{0, 0, []uint32{50, 10}, "/root", "/bin/sh"}},
		{spec: "0", want: identity{0, 0, []uint32{50, 10}, "/root", "/bin/sh"}},
		{spec: "alice", want: identity{1000, 1001, []uint32{50, 11}, "/home/alice", "/bin/sh"}},
		{spec: "1000", want: identity{1000, 1001, []uint32{50, 11}, "/home/alice", "/bin/sh"}},
		{spec: "alice:", want: identity{1000, 1001, []uint32{50, 11}, "/home/alice", "/bin/sh"}},
		{spec: "alice:staff", want: identity{1000, 50, nil, "/home/alice", "/bin/sh"}},
		{spec: "alice:50", want: identity{1000, 50, nil, "/home/alice", "/bin/sh"}},
		{spec: "alice:51", want: identity{1000, 51, nil, "/home/alice", "/bin/sh"}},
		{spec: "555:staff", want: identity{555, 50, nil, "/", ""}},
		{spec: "555", want: identity{555, 0, nil, "/", ""}},
		{spec: "1234", want: identity{77, 78, nil, "/numeric", "/bin/sh"}}, // names win over numbers
		{spec: "root:99", want: identity{0, 11, nil, "/root", "/bin/sh"}},
		{spec: "nohome", want: identity{6, 6, nil, "/", ""}},
		{spec: ":staff", want: identity{0, 50, nil, "/root", "/bin/sh"}},
		{spec: "2147483647", want: identity{2147483647, 0, nil, "/", ""}},
		{spec: "2147483648", err: true},
		{spec: "-1", err: true},
		{spec: "neg", err: true},
		{spec: "bob", err: true},
		{spec: "broken", err: true},
		{spec: "short", want: identity{5, 0, nil, "/", ""}},
		{spec: "blank", want: identity{8, 9, nil, "/", ""}},
		{spec: "alice:empty", want: identity{1000, 12, nil, "/home/alice", "/bin/sh"}},
		{spec: "alice:staff:x", want: identity{1000, 50, nil, "/home/alice", "/bin/sh"}},
		{spec: "scant", err: true},
		{spec: "alice:short", err: true},
		{spec: "alice:none", err: true},
		{spec: "alice:-1", err: true},
		{spec: "alice:broken", err: true},
		{spec: "#", err: true},
		{spec: "+", err: true},
	} {
		got, err := resolveUser(tc.spec, passwd, group)
		if tc.err {
			if !errors.Is(err, ErrRequest) {
				t.Errorf("%q: %+v, %v; want ErrRequest", tc.spec, got, err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q: %+v, %v; want %+v", tc.spec, got, err, tc.want)
		}
	}
	if got, err := resolveUser("7:8", "", ""); err != nil || got.uid != 7 || got.gid != 8 {
		t.Errorf("without files: %+v, %v", got, err)
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("alice:staff", "alice:x:1:2::/:\n", "staff:x:3:alice\n")
	f.Add("5", "::::::\n", ":::\n")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		who, err := resolveUser(spec, passwd, group)
		if err != nil && !errors.Is(err, ErrRequest) {
			t.Errorf("%v is not ErrRequest", err)
		}
		if err == nil && who.home == "" {
			t.Error("no home directory")
		}
	})
}

// Limits a node cannot enforce are dropped one by one, and each is named.
func TestDropUnenforceable(t *testing.T) {
	full := func() *specs.Spec {
		spec := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
		if err := withLimits(Limits{RAM: 1 << 30, NanoCPUs: 1e9, PIDs: 5}, nil)(spec); err != nil {
			t.Fatal(err)
		}
		return spec
	}
	spec := full()
	if said := dropUnenforceable(spec, cgroups.Features{Memory: true, Swap: true, CPUQuota: true, PIDs: true}); len(said) != 0 || !reflect.DeepEqual(spec, full()) {
		t.Errorf("something dropped: %q", said)
	}
	spec = full()
	if said := dropUnenforceable(spec, cgroups.Features{Memory: true, CPUQuota: true, PIDs: true}); len(said) != 1 || spec.Linux.Resources.Memory.Limit == nil {
		t.Errorf("without swap accounting: %q", said)
	}
	spec = full()
	if said := dropUnenforceable(spec, cgroups.Features{}); len(said) != 3 || spec.Linux.Resources.Memory != nil || spec.Linux.Resources.CPU != nil || spec.Linux.Resources.Pids != nil {
		t.Errorf("without anything: %q", said)
	}
	for asked, want := range map[int64]int{1: 1, MinRAM - 1: 1, MinRAM: 0, 0: 0} {
		spec = &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
		if err := withLimits(Limits{RAM: asked, PIDs: -1}, nil)(spec); err != nil {
			t.Fatal(err)
		}
		if said := dropUnenforceable(spec, cgroups.Features{Memory: true, Swap: true}); len(said) != want {
			t.Errorf("with a limit of %d bytes: %q", asked, said)
		}
		if said := dropUnenforceable(spec, cgroups.Features{}); len(said) > 1 {
			t.Errorf("with a limit of %d bytes that is not enforced: %q", asked, said)
		}
	}
	if said := dropUnenforceable(&specs.Spec{Linux: &specs.Linux{}}, cgroups.Features{}); len(said) != 0 {
		t.Errorf("without limits: %q", said)
	}
}
