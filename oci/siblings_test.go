package oci_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/oci"
)

// kin is a program that makes siblings of itself (clone(2), CLONE_PARENT): children
// of whoever has started it. Its arguments are how many, and what they execute.
const kin = `package main

import ("os"; "strconv"; "syscall"; "time")

func main() {
	if os.Args[1] == "traced" { // a thread has the parent for its tracer, and ends
		syscall.RawSyscall(syscall.SYS_PTRACE, 0, 0, 0)
		syscall.Kill(syscall.Getpid(), syscall.SIGCONT)
		syscall.Exec(os.Args[2], os.Args[2:], nil)
	}
	count, _ := strconv.Atoi(os.Args[1])
	for range count {
		attr := syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT, Setsid: true}}
		if _, err := syscall.ForkExec(os.Args[2], os.Args[2:], &attr); err != nil {
			println(err.Error())
			os.Exit(1)
		}
	}
	time.Sleep(100 * time.Millisecond) // some do something meanwhile
	os.Exit(3)
}
`

// A command's siblings are children of ours that nobody has asked for. They are
// reaped, and do not outlive the command, so that they neither keep the container
// from ending nor pile up.
func TestExecSiblings(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "main.go"), kin)
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "kin"), filepath.Join(dir, "main.go"))
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "kin"))
	must(t, err)
	for _, how := range []string{"ends", "is killed"} {
		t.Run(how, func(t *testing.T) {
			req := newRequest(t, newID(), "while ! [ -e /tmp/go ]; do sleep 0.01; done")
			must(t, os.WriteFile(filepath.Join(req.RootfsPath, "bin/kin"), program, 0o755))
			b, err := create(t, req, nil)
			must(t, err)
			must(t, b.ctr.Start(t.Context()))
			for _, command := range []string{
				"kin 3 /bin/true",
				"kin 3 /bin/sleep 1000", // which has the streams open
				"kin 1 /bin/kin 3 /bin/sleep 1000",
				"kin 2 /bin/kin 1000000 /bin/true",
				"kin 1 /bin/kin traced /bin/sleep 1000",
				"kin traced /bin/kin 3 /bin/kin traced /bin/true",
			} {
				if got := execIn(t, b.ctr, oci.ExecRequest{Args: strings.Fields(command)}, ""); got != (execResult{code: 3}) {
					t.Errorf("%s: got %+v", command, got)
				}
			}
			if how == "ends" {
				write(t, fmt.Sprintf("/proc/%d/root/tmp/go", b.ctr.PID()), "")
			} else {
				must(t, b.ctr.Kill(t.Context()))
			}
			b.wait()
		})
	}
}
