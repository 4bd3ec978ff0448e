//go:build seccomp && amd64

package libct

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	mobyseccomp "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var writeFilters = flag.Bool("write-filters", false, "write the filters that libseccomp makes")

// compileRole is the role of a process that loads a filter the way libcontainer
// does.
const compileRole = "LIBCT_TEST_COMPILE"

// defaultCapabilities are those of package oci's containers (its test
// TestFilterIsReady notices if they are others).
var defaultCapabilities = strings.Fields("CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT")

// dockersProfile is Docker's, on kernels from 4.8 on.
func dockersProfile(t *testing.T) *specs.LinuxSeccomp {
	t.Helper()
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: defaultCapabilities}}}
	profile, err := mobyseccomp.GetDefaultProfile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return profile
}

// profiles are those that a filter is kept for.
func profiles(t *testing.T) map[string]*configs.Seccomp {
	t.Helper()
	profile, err := specconv.SetupSeccomp(dockersProfile(t))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*configs.Seccomp{"Docker's default": profile}
}

// The filters kept are what libcontainer and libseccomp give to the kernel: read
// back from the kernel, instruction by instruction.
func TestFiltersAreLibseccomps(t *testing.T) {
	kept := map[string]bool{"README": true}
	for what, profile := range profiles(t) {
		name, err := filterName(profile)
		if err != nil {
			t.Fatal(err)
		}
		kept[name] = true
		path := filepath.Join(filterDir, name)
		if *writeFilters {
			if err := os.WriteFile(path, compile(t, profile), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%s: %v: the profile or runc has changed: go generate ./oci/internal/libct", what, err)
			continue
		}
		// runc makes the stub for unknown calls in the order in which Go walks
		// through a map of two: any of the orders is the same filter.
		same, tries := false, 0
		for ; !same && tries < 40; tries++ {
			same = bytes.Equal(compile(t, profile), have)
		}
		if !same {
			t.Errorf("%s: libseccomp now makes another filter: go generate ./oci/internal/libct", what)
		}
	}
	files, err := os.ReadDir(filterDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		switch {
		case kept[f.Name()]:
		case *writeFilters:
			if err := os.Remove(filepath.Join(filterDir, f.Name())); err != nil {
				t.Error(err)
			}
		default:
			t.Errorf("filter %s belongs to no profile", f.Name())
		}
	}
}

// compile returns the program that libcontainer loads for a profile.
func compile(t *testing.T, profile *configs.Seccomp) []byte {
	t.Helper()
	text, err := json.Marshal(profile)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), compileRole+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var thread int
	if _, err := fmt.Fscan(stdout, &thread); err != nil {
		t.Fatal(err)
	}
	programs := filtersOf(t, thread)
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(programs) != 1 {
		t.Fatalf("%d filters", len(programs))
	}
	return programs[0]
}

// The process that compile reads the filter of is this program.
func init() {
	text := os.Getenv(compileRole)
	if text == "" {
		return
	}
	runtime.LockOSThread()
	var profile configs.Seccomp
	if err := json.Unmarshal([]byte(text), &profile); err != nil {
		panic(err)
	}
	if _, err := seccomp.InitSeccomp(&profile); err != nil {
		panic(err)
	}
	fmt.Println(unix.Gettid())
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// filtersOf reads the filters of a thread from the kernel (ptrace(2),
// PTRACE_SECCOMP_GET_FILTER; CONFIG_CHECKPOINT_RESTORE).
func filtersOf(t *testing.T, thread int) (programs [][]byte) {
	t.Helper()
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(thread); err != nil {
		t.Fatal(os.NewSyscallError("ptrace(PTRACE_SEIZE)", err))
	}
	if err := unix.PtraceInterrupt(thread); err != nil {
		t.Fatal(os.NewSyscallError("ptrace(PTRACE_INTERRUPT)", err))
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(thread, &status, unix.WALL, nil); err != nil || !status.Stopped() {
		t.Fatal(status, err)
	}
	get := func(index int, into unsafe.Pointer) (int, error) {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(thread), uintptr(index), uintptr(into), 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
	for i := 0; ; i++ {
		n, err := get(i, nil)
		if err == unix.ENOENT || err == unix.EINVAL && i == 0 { // no more; no filter at all
			break
		}
		if err != nil {
			t.Fatal(os.NewSyscallError("ptrace(PTRACE_SECCOMP_GET_FILTER)", err))
		}
		instructions := make([]unix.SockFilter, n)
		if _, err := get(i, unsafe.Pointer(&instructions[0])); err != nil {
			t.Fatal(os.NewSyscallError("ptrace(PTRACE_SECCOMP_GET_FILTER)", err))
		}
		var program bytes.Buffer
		if err := binary.Write(&program, binary.LittleEndian, instructions); err != nil {
			t.Fatal(err)
		}
		programs = append(programs, program.Bytes())
	}
	if err := unix.PtraceDetach(thread); err != nil {
		t.Fatal(err)
	}
	return programs
}

// The filter of a waiting container is the one kept, and nothing can be done with
// a container that has not got it yet.
func TestFilterOfAWaitingContainer(t *testing.T) {
	c, fd := newFilteredContainer(t, dockersProfile(t), "busybox", "sleep", "1000")
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	lifeline := os.NewFile(uintptr(fd), "lifeline")
	defer lifeline.Close()
	stateDir, id := filepath.Split(c.stateDir)
	if _, err := Load(stateDir, id); err == nil {
		t.Error("a process could enter the container without a filter")
	}
	if err := c.Release(func() {}); err == nil {
		t.Error("the command could be executed without a filter")
	}
	if programs := filtersOf(t, c.PID()); len(programs) != 0 {
		t.Errorf("%d filters before one is loaded", len(programs))
	}
	want := c.filter.program
	if err := c.LoadFilter(lifeline); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		if programs := filtersOf(t, c.PID()); len(programs) != 1 || !bytes.Equal(programs[0], want) {
			t.Errorf("%s: %d filters, or another one", when, len(programs))
		}
	}
	check("waiting")
	if _, err := Load(stateDir, id); err != nil {
		t.Error(err)
	}
	if err := c.Release(func() { _, _ = lifeline.Read(make([]byte, 1)) }); err != nil {
		t.Fatal(err)
	}
	check("running")
}

// A filter that the kernel refuses, and an init that ends meanwhile, are errors.
func TestFilterCannotBeLoaded(t *testing.T) {
	for what, spoil := range map[string]func(*Container){
		"refused": func(c *Container) { c.filter.program = make([]byte, sockFilterSize) },
		"killed":  func(c *Container) { _ = c.Signal(unix.SIGKILL); _, _ = c.Wait() },
		"too big": func(c *Container) { c.filter.program = make([]byte, sockFilterSize*(maxFilter+1)) },
	} {
		t.Run(what, func(t *testing.T) {
			c, fd := newFilteredContainer(t, dockersProfile(t), "busybox", "true")
			lifeline := os.NewFile(uintptr(fd), "lifeline")
			defer lifeline.Close()
			spoil(c)
			err := c.LoadFilter(lifeline)
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			if err := c.Release(func() {}); err == nil {
				t.Error("the command could be executed without a filter")
			}
		})
	}
}
