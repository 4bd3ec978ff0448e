package mount

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
)

const logLine = `^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d arvados\.arvados_fuse\[\d+\] ERROR: `

func TestMissingBlock(t *testing.T) {
	w := newWorld(t)
	good, lost := w.put([]byte("foobar")), w.put([]byte("lost"))
	pdh := w.publish(". "+good+" "+lost+" 0:6:good 6:4:lost\n", time.Now().Add(time.Hour))
	if err := os.Remove(filepath.Join(w.root, lost[:3], lost[:32])); err != nil {
		t.Fatal(err)
	}
	w.mount()
	if _, err := os.ReadFile(w.path("by_id", pdh, "lost")); !errors.Is(err, syscall.EIO) {
		t.Errorf("missing block: %v", err)
	}
	line := regexp.MustCompile(`(?m)` + logLine + `Block not found error: .*` + lost[:32] + `.*$`)
	w.waitLog(line)
	if found := line.FindAllString(w.stderr.String(), -1); len(found) != 1 {
		t.Errorf("%d lines about the block:\n%s", len(found), w.stderr)
	}
	if text, err := os.ReadFile(w.path("by_id", pdh, "good")); err != nil || string(text) != "foobar" {
		t.Errorf("other file: %q %v", text, err)
	}
	noSecrets(t, w)
}

func TestDamagedBlock(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	pdh := w.publish(". "+loc+" 0:6:f\n", time.Now().Add(time.Hour))
	path := filepath.Join(w.root, loc[:3], loc[:32])
	if err := os.WriteFile(path, []byte("fooBar"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.mount()
	if _, err := os.ReadFile(w.path("by_id", pdh, "f")); !errors.Is(err, syscall.EIO) {
		t.Errorf("damaged block: %v", err)
	}
	line := regexp.MustCompile(`(?m)` + logLine + `Unhandled exception during FUSE operation: .*$`)
	w.waitLog(line)
	// Once it is mended, the file can be read without further ado.
	if err := os.WriteFile(path, []byte("foobar"), 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the file to be readable again", func() bool {
		text, err := os.ReadFile(w.path("by_id", pdh, "f"))
		return err == nil && string(text) == "foobar"
	})
	noSecrets(t, w)
}

// noSecrets checks that nothing on stderr helps to read blocks.
func noSecrets(t *testing.T, w *world) {
	t.Helper()
	if log := w.stderr.String(); regexp.MustCompile(`[0-9a-f]{40}|secretsecret`).MatchString(log) {
		t.Errorf("signature or token in the log:\n%s", log)
	}
}

// blockedStore is a Keep service whose GETs wait until released.
func blockedStore(w *world) (release func()) {
	gate := make(chan struct{})
	old := w.url
	hs := newHTTPServer(w.t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-gate:
			resp, err := http.Get(old + r.URL.Path + "?api_token=" + token)
			if err != nil {
				rw.WriteHeader(500)
				return
			}
			defer resp.Body.Close()
			rw.Header().Set("Content-Length", resp.Header.Get("Content-Length"))
			_, _ = io.Copy(rw, resp.Body)
		case <-r.Context().Done():
		}
	}))
	w.url = hs
	return sync.OnceFunc(func() { close(gate) })
}

// readerRole reads the file in its first argument, tells on stdout that it is
// about to, and prints what it got.
func readerRole() int {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR1)
	fmt.Println("reading")
	fd, err := unix.Open(os.Args[1], unix.O_RDONLY, 0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	fmt.Println(string(buf[:max(n, 0)]), err)
	return 0
}

func startReader(t *testing.T, path string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", path)
	cmd.Env = append(os.Environ(), roleVar+"=reader")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); line != "reading\n" {
		t.Fatalf("reader: %q %v", line, err)
	}
	return cmd, r
}

// A program that waits for the API server or for Keep can be killed at once; a
// signal that does not kill it does not disturb it.
func TestSignals(t *testing.T) {
	for _, where := range []string{"API", "Keep"} {
		t.Run(where, func(t *testing.T) {
			w := newWorld(t)
			loc := w.put([]byte("foobar"))
			pdh := w.publish(". "+loc+" 0:6:f\n", time.Now().Add(time.Hour))
			var release func()
			if where == "API" {
				release = blockedAPI(w, pdh)
			} else {
				release = blockedStore(w)
			}
			w.mount()
			t.Cleanup(release) // nothing waits when the server is to end
			path := w.path("by_id", pdh, "f")
			killed, _ := startReader(t, path)
			waitBlocked(t, killed.Process.Pid)
			if err := killed.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = killed.Wait() // the test would hang here

			patient, out := startReader(t, path)
			waitBlocked(t, patient.Process.Pid)
			signalThreads(t, patient.Process.Pid, syscall.SIGUSR1)
			lines := make(chan string, 1)
			go func() {
				line, _ := out.ReadString('\n')
				lines <- line
			}()
			var line string
			select {
			case line = <-lines: // too early
			case <-time.After(300 * time.Millisecond):
				release()
				line = <-lines
			}
			if line != "foobar <nil>\n" {
				t.Errorf("reader with signals: %q\n%s", line, w.stderr)
			}
			_ = patient.Wait()
		})
	}
}

// blockedAPI makes the API server answer late.
func blockedAPI(w *world, id string) (release func()) {
	path := filepath.Join(w.api, id)
	text, err := os.ReadFile(path)
	if err == nil {
		err = errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0) // does not wait for a reader
		if err != nil {
			w.t.Error(err)
			return
		}
		defer f.Close()
		if _, err := f.Write(text); err != nil {
			w.t.Error(err)
		}
	})
}

// waitBlocked waits until a process waits for the FUSE server, and not for a
// moment only.
func waitBlocked(t *testing.T, pid int) {
	t.Helper()
	seen := 0
	waitFor(t, "the reader to wait", func() bool {
		if seen++; !inFuse(t, pid) {
			seen = 0
		}
		return seen > 30
	})
}

// inFuse tells whether a thread of a process waits for a FUSE server, or for a
// page that one is to deliver.
func inFuse(t *testing.T, pid int) bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", pid))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte("fuse_")) || bytes.Contains(text, []byte("folio_wait")) || bytes.Contains(text, []byte("filemap_")) {
			return true
		}
	}
	return false
}

// signalThreads sends a signal to each thread of a process: sent to the process
// it would go to one that does not wait.
func signalThreads(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		if err := unix.Tgkill(pid, tid, sig); err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
	}
}

// A server that dies leaves ENOTCONN behind, which --unmount clears away.
func TestServerKilled(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	pdh := w.publish(". "+loc+" 0:6:f\n", time.Now().Add(time.Hour))
	w.mount()
	f, err := os.Open(w.path("by_id", pdh, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := w.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-w.exited
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("open file: %v", err)
	}
	if _, err := os.Stat(w.path("by_id", "x")); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("path: %v", err)
	}
	if !w.mounted() {
		t.Error("the dead mount is gone by itself")
	}
	if out, err := w.unmount(); err != nil || out != "" {
		t.Errorf("--unmount: %v %s", err, out)
	}
	if w.mounted() {
		t.Error("still mounted")
	}
	if out, err := w.unmount(); err != nil || out != "" {
		t.Errorf("--unmount of nothing: %v %s", err, out)
	}
}

// --unmount also gets rid of a mount whose server does not answer and that
// somebody waits for.
func TestUnmountHungServer(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	pdh := w.publish(". "+loc+" 0:6:f\n", time.Now().Add(time.Hour))
	release := blockedStore(w)
	w.mount()
	reader, out := startReader(t, w.path("by_id", pdh, "f"))
	waitBlocked(t, reader.Process.Pid)
	if err := w.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if text, err := w.unmount(); err != nil {
		t.Errorf("--unmount: %v %s", err, text)
	}
	if w.mounted() {
		t.Error("still mounted")
	}
	if line, _ := out.ReadString('\n'); !strings.Contains(line, "transport endpoint") && !strings.Contains(line, "connection abort") &&
		!strings.Contains(line, "input/output error") {
		t.Errorf("reader got %q", line)
	}
	_ = reader.Wait()
	release()
	_ = w.cmd.Process.Signal(syscall.SIGCONT)
	<-w.exited
	if code := w.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("server exits with %d:\n%s", code, w.stderr)
	}
}

// SIGTERM ends the server at once, mount included, although files are open and
// a read is under way.
func TestTerminate(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	pdh := w.publish(". "+loc+" 0:6:f\n", time.Now().Add(time.Hour))
	release := blockedStore(w)
	defer release()
	w.mount()
	reader, _ := startReader(t, w.path("by_id", pdh, "f"))
	waitBlocked(t, reader.Process.Pid)
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-w.exited
	if w.mounted() || w.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("mounted: %v, exit: %v\n%s", w.mounted(), w.cmd.ProcessState, w.stderr)
	}
	_ = reader.Wait()
}

// parentRole stands for the supervisor: in a mount namespace of its own it
// starts the server in its arguments and then waits to be killed.
func parentRole() int {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		fmt.Println(err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVar+"=mount", ReadyFD+"=3")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{os.Stdout}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("pid", cmd.Process.Pid)
	_ = unix.Pause() // for a signal
	return 0
}

// When the parent dies, the server dies with it, and no mount is left anywhere.
func TestParentDeath(t *testing.T) {
	w := newWorld(t)
	parent := w.mountCommand("--foreground", "--mount-by-pdh", "by_id", w.dir)
	parent.Env = append(parent.Env, roleVar+"=parent")
	parent.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	forkthread.Do(func() { err = parent.Start() })
	if err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(stdout)
	var pid int
	for ready := false; pid == 0 || !ready; {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatalf("parent: %v\n%s", err, w.stderr)
		}
		ready = ready || line == "ready\n"
		_, _ = fmt.Sscanf(line, "pid %d", &pid)
	}
	if w.mounted() {
		t.Error("the mount is visible outside of its namespace")
	}
	if n := mountsOf(t, pid, w.dir); n != 1 {
		t.Errorf("%d mounts in the server's namespace", n)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	waitFor(t, "the server to end", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
}

func mountsOf(t *testing.T, pid int, dir string) (n int) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := parseMountinfo(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if m.point == dir {
			n++
		}
	}
	return n
}

func TestMountFails(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"no such file or directory": {"--foreground", "--mount-by-pdh", "by_id", w.dir + "/absent"},
		"not a directory":           {"--foreground", "--mount-by-pdh", "by_id", file},
		"unknown option":            {"--foreground", "--frobnicate", w.dir},
	} {
		cmd := w.mountCommand(args...)
		cmd.Stderr = nil
		var out []byte
		var err error
		forkthread.Do(func() { out, err = cmd.CombinedOutput() })
		if err == nil || !strings.Contains(string(out), name) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%v: %v %q", args, err, out)
		}
	}
	cmd := w.mountCommand("--version")
	if out, err := cmd.Output(); err != nil || string(out) != "keep-mount-test 1.0\n" {
		t.Errorf("--version: %q %v", out, err)
	}
}

// A mount point may be a link, of which the table of mounts knows nothing.
func TestMountpointIsLink(t *testing.T) {
	w := newWorld(t)
	real, tmp := w.dir, t.TempDir()
	for link, target := range map[string]string{"link": "other", "other": real, "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(tmp, link)); err != nil {
			t.Fatal(err)
		}
	}
	w.dir = filepath.Join(tmp, "link")
	for _, end := range []string{"signal", "unmount"} {
		w.mount()
		if _, err := os.Stat(filepath.Join(real, "by_id/README")); err != nil {
			t.Error(err)
		}
		if end == "signal" {
			_ = w.cmd.Process.Signal(syscall.SIGTERM)
		} else if out, err := w.unmount(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		<-w.exited
		if mounts, err := fuseMounts(real); err != nil || len(mounts) > 0 {
			t.Errorf("%s: left behind: %v %v", end, mounts, err)
		}
	}
	if text := w.stderr.String(); text != "" {
		t.Error(text)
	}
	if _, err := realPath(filepath.Join(tmp, "loop")); !errors.Is(err, syscall.ELOOP) {
		t.Error(err)
	}
}

func TestStatistics(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	pdh := w.publish(". "+loc+" 0:6:f\n", time.Now().Add(time.Hour))
	w.mount("--crunchstat-interval=0.25")
	if _, err := os.ReadFile(w.path("by_id", pdh, "f")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`(?m)^crunchstat: keepcalls 0 put 1 get -- interval 0\.2500 seconds 0 put 0 get$`,
		`(?m)^crunchstat: keepcalls 0 put 1 get -- interval 0\.2500 seconds 0 put 1 get$`,
		`(?m)^crunchstat: net:keep0 0 tx \d+ rx -- interval 0\.2500 seconds 0 tx \d+ rx$`,
		`(?m)^crunchstat: keepcache 0 hit 1 miss -- interval 0\.2500 seconds 0 hit 0 miss$`,
		`(?m)^crunchstat: blkio:0:0 0 write 6 read -- interval 0\.2500 seconds 0 write 6 read$`,
		`(?m)^crunchstat: fuseops 0 write 1 read -- interval 0\.2500 seconds 0 write 0 read$`,
		`(?m)^crunchstat: fuseop:read 1 count \d+\.\d{6} time -- interval 0\.2500 seconds 1 count \d+\.\d{6} time$`,
		`(?m)^crunchstat: fuseop:lookup [1-9]\d* count \d+\.\d{6} time -- `,
	} {
		w.waitLog(regexp.MustCompile(want))
	}
}

// The number of a connection that has ended may already be another's.
func TestEndSparesOthers(t *testing.T) {
	w := newWorld(t)
	w.mount()
	mounts, err := fuseMounts(w.dir)
	if err != nil || len(mounts) != 1 {
		t.Fatal(mounts, err)
	}
	served := make(chan struct{})
	close(served)
	if err := end(t.TempDir(), mounts[0].device, served); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadDir(w.path("by_id")); err != nil {
		t.Errorf("another mount has been cut off: %v", err)
	}
}
