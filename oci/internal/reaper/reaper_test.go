package reaper

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The program was made of the source that is here.
func TestProgramIsUpToDate(t *testing.T) {
	source, err := os.ReadFile("program/init.c")
	if err != nil {
		t.Fatal(err)
	}
	noted, err := os.ReadFile("program/init.sum")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(source)
	if !strings.HasPrefix(string(noted), hex.EncodeToString(sum[:])) {
		t.Error("program/init.c has changed since init.elf was made: run go generate")
	}
}

// Nobody can change the program.
func TestProgramIsSealed(t *testing.T) {
	f, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the program can be written to")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("the program can be truncated")
	}
}

// The main goroutine stays on the main thread, which Go cannot end.
func init() { runtime.LockOSThread() }

// execute prepares the program to execute a command in its place, with a lifeline
// of which ours is the creator's end.
func execute(t *testing.T, command ...string) (cmd *exec.Cmd, ours *os.File) {
	t.Helper()
	program, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	t.Cleanup(func() { _, _, _ = program.Close(), ours.Close(), theirs.Close() })
	cmd = exec.Command("/proc/self/fd/4", append([]string{"exec"}, command...)...)
	cmd.ExtraFiles = []*os.File{theirs, program}
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	return cmd, ours
}

// The command is the same process, and has no more descriptors than it should.
func TestExecutesInPlace(t *testing.T) {
	cmd, _ := execute(t, "sh", "-c", `echo $$ "$0"; [ -e /proc/$$/fd/3 ] && echo "has the lifeline"; exit 7`, "argument")
	var out bytes.Buffer
	cmd.Stdout = &out
	_ = cmd.Run()
	if want := fmt.Sprintf("%d argument\n", cmd.Process.Pid); out.String() != want || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("%v, says %q, want %q", cmd.ProcessState, out.String(), want)
	}
}

// It dies with the thread that made it, as it asks for itself.
func TestCommandDiesWithItsCreator(t *testing.T) {
	cmd, _ := execute(t, "sh", "-c", "echo ready; exec sleep 600")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := cmd.Start()
		if err == nil {
			_, err = io.ReadFull(out, make([]byte, len("ready\n")))
		}
		started <- err
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("its end: %v", cmd.ProcessState)
	}
}

// A creator that has died before is noticed, too.
func TestCreatorIsDeadAlready(t *testing.T) {
	cmd, ours := execute(t, "echo", "ran")
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	if out, _ := cmd.Output(); len(out) > 0 || cmd.ProcessState.ExitCode() != 137 {
		t.Errorf("%v, says %q", cmd.ProcessState, out)
	}
}

// Why the command cannot be executed is told on the lifeline.
func TestTellsWhyNot(t *testing.T) {
	cmd, ours := execute(t, "no-such-command")
	_ = cmd.Run()
	_ = cmd.ExtraFiles[0].Close()
	said, err := io.ReadAll(ours)
	if want := `exec: "no-such-command": executable file not found in $PATH`; err != nil || string(said) != want || cmd.ProcessState.ExitCode() != 127 {
		t.Errorf("%v, says %q, %v", cmd.ProcessState, said, err)
	}
}
