package cgroups

import (
	"os"
	"testing"
	"testing/fstest"
)

func TestFeatures(t *testing.T) {
	v2 := "cgroup2 /cg cgroup2 rw 0 0\n"
	for _, tc := range []struct {
		name string
		fsys fstest.MapFS
		want Features
	}{
		{"nothing mounted", fstest.MapFS{"proc/mounts": file("proc /proc proc rw 0 0\n")}, Features{}},
		{"v1 without swap accounting and bandwidth", fstest.MapFS{
			"proc/mounts":                     file("cgroup /m cgroup rw,memory 0 0\ncgroup /c cgroup rw,cpu,cpuacct 0 0\ncgroup /p cgroup rw,pids 0 0\n"),
			"m/memory.limit_in_bytes":         file("1"),
			"c/cpu.shares":                    file("1"),
			"p/cgroup.procs":                  file(""),
			"elsewhere/memory.memsw.limit_in": file(""),
		}, Features{Memory: true, PIDs: true}},
		{"v2", fstest.MapFS{
			"proc/mounts":           file(v2),
			"proc/self/cgroup":      file("0::/a\n"),
			"cg/cgroup.controllers": file("cpuset cpu io memory pids\n"),
			"cg/a/memory.max":       file("max\n"),
			"cg/a/memory.swap.max":  file("max\n"),
		}, Features{Memory: true, Swap: true, CPUQuota: true, PIDs: true}},
		{"v2 without swap accounting", fstest.MapFS{
			"proc/mounts":           file(v2),
			"proc/self/cgroup":      file("0::/a\n"),
			"cg/cgroup.controllers": file("memory\n"),
			"cg/a/memory.max":       file("max\n"),
		}, Features{Memory: true}},
		{"v2 without controllers", fstest.MapFS{"proc/mounts": file(v2), "cg/cgroup.controllers": file("\n")}, Features{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Reader{FS: tc.fsys}.Features()
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
	if _, err := (Reader{FS: fstest.MapFS{}}).Features(); err == nil {
		t.Error("no error without /proc/mounts")
	}
	if got, err := (Reader{FS: os.DirFS("/")}).Features(); err != nil || !got.Memory {
		t.Errorf("this machine: %+v, %v", got, err)
	}
}
