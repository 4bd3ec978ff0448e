//go:build seccomp && amd64

package libct

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
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

// libseccompFile names the version of libseccomp that the filters were made with.
const libseccompFile = "libseccomp"

// libseccompVersion is that of the library in this program.
func libseccompVersion() string {
	major, minor, micro := seccomp.Version()
	return fmt.Sprintf("%d.%d.%d\n", major, minor, micro)
}

// comparable tells whether libseccomp can be expected to make the filters that
// are kept, instruction by instruction, and the kernel to show what it makes.
// Another version knows other system calls, and has its own idea of their order;
// what the filters do is compared by package oci's tests, with any version.
func comparable(t *testing.T, profile *configs.Seccomp) bool {
	t.Helper()
	made, err := os.ReadFile(filepath.Join(filterDir, libseccompFile))
	if err != nil {
		t.Fatal(err)
	}
	if string(made) != libseccompVersion() {
		t.Logf("the filters were made with libseccomp %s, this is %s: not compared", bytes.TrimSpace(made), strings.TrimSpace(libseccompVersion()))
		return false
	}
	if _, err := compile(t, profile); errors.Is(err, errUnreadable) {
		t.Log("not compared: ", err)
		return false
	}
	return true
}

// The filters kept are what libcontainer and libseccomp give to the kernel: read
// back from the kernel, instruction by instruction.
func TestFiltersAreLibseccomps(t *testing.T) {
	kept := map[string]bool{"README": true, libseccompFile: true}
	if *writeFilters {
		if err := os.WriteFile(filepath.Join(filterDir, libseccompFile), []byte(libseccompVersion()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for what, profile := range profiles(t) {
		name, err := filterName(profile)
		if err != nil {
			t.Fatal(err)
		}
		kept[name] = true
		path := filepath.Join(filterDir, name)
		if *writeFilters {
			program, err := compile(t, profile)
			if err == nil {
				err = os.WriteFile(path, program, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%s: %v: the profile or runc has changed: go generate ./oci/internal/libct", what, err)
			continue
		}
		if !comparable(t, profile) {
			continue
		}
		// runc makes the stub for unknown calls in the order in which Go walks
		// through a map of two: any of the orders is the same filter.
		same, tries := false, 0
		for ; !same && tries < 40; tries++ {
			program, err := compile(t, profile)
			if err != nil {
				t.Fatal(err)
			}
			same = bytes.Equal(program, have)
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

// compile returns the program that libcontainer loads for a profile, or
// errUnreadable.
func compile(t *testing.T, profile *configs.Seccomp) ([]byte, error) {
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
	programs, unreadable := filtersOf(t, thread)
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if unreadable != nil {
		return nil, unreadable
	}
	if len(programs) != 1 {
		t.Fatalf("%d filters", len(programs))
	}
	return programs[0], nil
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

// errUnreadable says that filters cannot be read here.
var errUnreadable = errors.New("system call filters cannot be read here: the kernel lacks CONFIG_CHECKPOINT_RESTORE, or this process has a filter itself, or not all capabilities")

// filtersOf reads the filters of a thread from the kernel (ptrace(2),
// PTRACE_SECCOMP_GET_FILTER). Its error is errUnreadable.
func filtersOf(t *testing.T, thread int) (programs [][]byte, err error) {
	t.Helper()
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(thread); err == unix.EPERM {
		return nil, errUnreadable
	} else if err != nil {
		t.Fatal(os.NewSyscallError("ptrace(PTRACE_SEIZE)", err))
	}
	defer func() {
		if err := unix.PtraceDetach(thread); err != nil {
			t.Error(os.NewSyscallError("ptrace(PTRACE_DETACH)", err))
		}
	}()
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
		switch {
		case err == unix.ENOENT, err == unix.EINVAL && i == 0 && statusOf(t, thread, "Seccomp") == "0":
			return programs, nil
		case err == unix.EACCES, err == unix.EINVAL && i == 0: // which a kernel says that cannot read any
			return nil, errUnreadable
		case err != nil:
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
}

// statusOf reads a field of /proc/PID/status (proc(5)); "" if the kernel has none.
func statusOf(t *testing.T, thread int, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// filterCount counts the filters that a process has and this one has not.
func filterCount(t *testing.T, pid int) int {
	t.Helper()
	const field = "Seccomp_filters" // Linux 5.9
	own, err1 := strconv.Atoi(statusOf(t, os.Getpid(), field))
	theirs, err2 := strconv.Atoi(statusOf(t, pid, field))
	if err1 != nil || err2 != nil {
		t.Skip("this kernel neither shows filters nor counts them")
	}
	return theirs - own
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
	check := func(when string, want ...[]byte) {
		t.Helper()
		programs, err := filtersOf(t, c.PID())
		if err != nil {
			t.Log(err)
			if n := filterCount(t, c.PID()); n != len(want) {
				t.Errorf("%s: %d filters, want %d", when, n, len(want))
			}
		} else if !slices.EqualFunc(programs, want, bytes.Equal) {
			t.Errorf("%s: %d filters, or another one", when, len(programs))
		}
	}
	check("before one is loaded")
	want := c.filter.program
	if err := c.LoadFilter(lifeline); err != nil {
		t.Fatal(err)
	}
	check("waiting", want)
	if _, err := Load(stateDir, id); err != nil {
		t.Error(err)
	}
	if err := c.Release(func() { _, _ = lifeline.Read(make([]byte, 1)) }); err != nil {
		t.Fatal(err)
	}
	check("running", want)
}

// A filter that the kernel refuses, and an init that ends meanwhile, are errors.
func TestFilterCannotBeLoaded(t *testing.T) {
	for what, spoil := range map[string]func(started){
		"refused": func(c started) { c.filter.program = make([]byte, sockFilterSize) },
		"killed":  func(c started) { _ = c.Signal(unix.SIGKILL); _, _ = c.Wait() },
		"too big": func(c started) { c.filter.program = make([]byte, sockFilterSize*(maxFilter+1)) },
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
