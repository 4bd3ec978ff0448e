package dispatcher

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/internal/forkthread"
	"crunch-oci/internal/leaktest"
	"crunch-oci/localcluster"
)

// With roleEnv set the test binary is a supervisor of that kind, or a
// dispatcher in a process of its own.
const roleEnv = "DISPATCHER_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleEnv); role {
	case "":
		leaktest.Main(m)
	case "dispatcher":
		os.Exit(dispatcherProcess())
	default:
		os.Exit(supervisorProcess(role, os.Args[len(os.Args)-1]))
	}
}

// supervisorProcess does with the record what a supervisor does, as far as its
// role goes, and tells in a file what it does when.
func supervisorProcess(role, uuid string) int {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT)
	cfg, _ := arvados.ConfigFromEnv(os.LookupEnv)
	api, err := arvados.NewClient(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer api.Close()
	put := func(attrs map[string]any) {
		if err := api.UpdateContainer(context.Background(), uuid, attrs); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	say := func(what string) {
		f, err := os.OpenFile(os.Getenv("EVENTS"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err == nil {
			fmt.Fprintf(f, "%s %s %d\n", what, uuid, os.Getpid())
			f.Close()
		}
	}
	say("began")
	if role == "crash-locked" {
		return 1
	}
	put(map[string]any{"state": "Running", "runtime_status": map[string]string{"activity": "testing"}})
	say("running")
	switch role {
	case "complete":
		put(map[string]any{"state": "Complete", "exit_code": 0})
	case "parent": // unless it is a child itself
		auth, err := api.ContainerAuth(context.Background(), uuid)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		own := api.WithToken("v2/" + auth.UUID + "/" + auth.APIToken + "/" + uuid)
		record, err := api.GetContainer(context.Background(), uuid)
		if err == nil && record.Command[0] == "parent" {
			var r arvados.ContainerRequest
			r, err = own.CreateContainerRequest(context.Background(), work("child", 1, 1))
			for err == nil && r.State != arvados.RequestFinal {
				time.Sleep(20 * time.Millisecond) // a program in a container that polls
				r, err = own.GetContainerRequest(context.Background(), r.UUID)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		put(map[string]any{"state": "Complete", "exit_code": 0})
	case "crash-running":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "wait":
		<-interrupted
		put(map[string]any{"state": "Cancelled"})
	case "stubborn":
		for {
			<-interrupted
		}
	}
	say("ended")
	return 0
}

// world is a cluster with a user and a queue.
type world struct {
	t                testing.TB
	cluster          *localcluster.Cluster
	user, own, admin *arvados.Client
	events           string
}

func newWorld(t testing.TB) *world {
	c, err := localcluster.Start(t.Context(), localcluster.Options{Dir: t.TempDir(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, cluster: c, events: filepath.Join(t.TempDir(), "events")}
	if w.user, err = arvados.NewClient(arvados.Config{Host: c.Host(), Token: c.UserToken(), CAFile: c.CAFile()}); err != nil {
		t.Fatal(err)
	}
	w.own, w.admin = w.user.WithToken(c.OwnDispatcherToken()), w.user.WithToken(c.AdminToken())
	t.Cleanup(func() {
		w.user.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	// An image as far as the API looks at it.
	image := "sha256:" + strings.Repeat("1", 64)
	coll, err := w.admin.CreateCollection(t.Context(), map[string]any{"owner_uuid": w.userUUID(),
		"manifest_text": ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:" + image + ".tar\n"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.user.CreateLink(t.Context(), map[string]any{"link_class": "docker_image_repo+tag", "name": "img:latest", "head_uuid": coll.UUID}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) userUUID() string {
	u, err := w.user.CurrentUser(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return u.UUID
}

// work is a container request for a command.
func work(command string, priority, attempts int) map[string]any {
	return map[string]any{
		"state": "Committed", "priority": priority, "command": []string{command}, "container_image": "img", "output_path": "/out",
		"mounts": map[string]any{"/out": map[string]any{"kind": "tmp"}}, "runtime_constraints": map[string]any{"vcpus": 1, "ram": 1 << 28},
		"use_existing": false, "container_count_max": attempts,
	}
}

// submit returns the request's and the container's UUID.
func (w *world) submit(priority, attempts int) (request, container string) {
	w.t.Helper()
	return w.submitCommand("true", priority, attempts)
}

func (w *world) submitCommand(command string, priority, attempts int) (request, container string) {
	w.t.Helper()
	r, err := w.user.CreateContainerRequest(w.t.Context(), work(command, priority, attempts))
	if err != nil {
		w.t.Fatal(err)
	}
	return r.UUID, r.ContainerUUID
}

func (w *world) container(uuid string) arvados.Container {
	w.t.Helper()
	c, err := w.own.GetContainer(w.t.Context(), uuid)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// env is what a supervisor or dispatcher of this world gets.
func (w *world) env(role string) []string {
	return append(os.Environ(), roleEnv+"="+role, "EVENTS="+w.events, "ARVADOS_API_HOST="+w.cluster.Host(),
		"ARVADOS_API_TOKEN="+w.cluster.OwnDispatcherToken(), "SSL_CERT_FILE="+w.cluster.CAFile())
}

// dispatch runs a dispatcher until the test, or stop, ends it.
func (w *world) dispatch(slots int, role string, more ...func(*Config)) (stop func()) {
	w.t.Helper()
	cfg := Config{API: w.own, Slots: slots, Poll: 20 * time.Millisecond, Command: func(uuid string) *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", uuid)
		cmd.Env, cmd.Stderr = w.env(role), os.Stderr
		return cmd
	}}
	for _, m := range more {
		m(&cfg)
	}
	d, err := New(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); d.Run(context.Background(), ctx) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done }) }
	w.t.Cleanup(stop)
	return stop
}

// waitFor polls until ok; the records have no events to wait for.
func (w *world) waitFor(what string, ok func() bool) {
	w.t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	watchdog := time.After(time.Minute)
	for !ok() {
		select {
		case <-ticker.C:
		case <-watchdog:
			w.t.Fatalf("%s: not within a minute", what)
		}
	}
}

func (w *world) waitState(uuid, state string) {
	w.t.Helper()
	w.waitFor(uuid+" is "+state, func() bool { return w.container(uuid).State == state })
}

type event struct {
	what, uuid string
	pid        int
}

func (w *world) history() []event {
	w.t.Helper()
	data, err := os.ReadFile(w.events)
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	var out []event
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		var e event
		fmt.Sscan(s.Text(), &e.what, &e.uuid, &e.pid)
		out = append(out, e)
	}
	return out
}

func (w *world) count(what, uuid string) (n int) {
	for _, e := range w.history() {
		if e.what == what && e.uuid == uuid {
			n++
		}
	}
	return n
}

// Containers are run in the order of their priority, and never more at a time
// than there are slots.
func TestOrderAndSlots(t *testing.T) {
	for _, slots := range []int{1, 3} {
		t.Run(fmt.Sprint(slots), func(t *testing.T) {
			w := newWorld(t)
			var want []string // highest priority first
			for _, p := range []int{5, 900, 1, 30, 700} {
				_, c := w.submit(p, 1)
				want = append(want, fmt.Sprintf("%03d %s", p, c))
			}
			slices.Sort(want)
			slices.Reverse(want)
			_, held := w.submit(0, 1) // on hold
			w.dispatch(slots, "complete")
			for _, c := range want {
				w.waitState(c[4:], "Complete")
			}
			live, most := 0, 0
			var began []string
			for _, e := range w.history() {
				switch e.what {
				case "began":
					live++
					began = append(began, e.uuid)
				case "ended":
					live--
				}
				most = max(most, live)
			}
			if most > slots {
				t.Errorf("%d supervisors at a time, want at most %d", most, slots)
			}
			for i, c := range want {
				if slots == 1 && (len(began) != len(want) || began[i] != c[4:]) {
					t.Errorf("order %v, want %v", began, want)
					break
				}
			}
			if c := w.container(held); c.State != "Queued" || c.LockCount != 0 {
				t.Errorf("container on hold: %s, locked %d times", c.State, c.LockCount)
			}
		})
	}
}

// A container that waits for its own child does not keep it from running.
func TestParentAndChild(t *testing.T) {
	w := newWorld(t)
	var parents []string
	for range 2 {
		_, c := w.submitCommand("parent", 5, 1)
		parents = append(parents, c)
	}
	w.dispatch(1, "parent")
	for _, c := range parents {
		w.waitState(c, "Complete")
	}
	began := 0
	for _, e := range w.history() {
		if e.what == "began" {
			began++
		}
	}
	if began != 4 {
		t.Errorf("%d containers of two parents and two children: %v", began, w.history())
	}
}

// A container that nobody wants any more is interrupted, as often as needed.
func TestCancel(t *testing.T) {
	w := newWorld(t)
	request, container := w.submit(1, 3)
	w.dispatch(1, "wait")
	w.waitState(container, "Running")
	if _, err := w.user.UpdateContainerRequest(t.Context(), request, map[string]any{"priority": 0}); err != nil {
		t.Fatal(err)
	}
	w.waitState(container, "Cancelled")
	if r, err := w.user.GetContainerRequest(t.Context(), request); err != nil || r.State != "Final" {
		t.Errorf("request: %s %v", r.State, err)
	}
	w.waitFor("the supervisor has ended by itself", func() bool { return w.count("ended", container) == 1 })
}

// A supervisor that crashes before user code has run costs an attempt, no more.
// The server bounds them.
func TestCrashWhileLocked(t *testing.T) {
	w := newWorld(t)
	request, container := w.submit(1, 1)
	w.dispatch(1, "crash-locked")
	w.waitState(container, "Cancelled")
	if n := w.count("began", container); n != 10 {
		t.Errorf("%d attempts, want 10", n)
	}
	if c := w.container(container); !strings.Contains(fmt.Sprint(c.RuntimeStatus["error"]), "MaxDispatchAttempts") {
		t.Errorf("runtime status: %v", c.RuntimeStatus)
	}
	if r, err := w.user.GetContainerRequest(t.Context(), request); err != nil || r.State != "Final" {
		t.Errorf("request: %s %v", r.State, err)
	}
}

// What a crashed supervisor leaves running is cancelled, with the reason, and
// the request gets other containers as often as it wants.
func TestCrashWhileRunning(t *testing.T) {
	w := newWorld(t)
	request, first := w.submit(1, 3)
	w.dispatch(1, "crash-running")
	w.waitFor("request is Final", func() bool {
		r, err := w.user.GetContainerRequest(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		return r.State == "Final"
	})
	r, err := w.user.GetContainerRequest(t.Context(), request)
	if err != nil || r.ContainerCount != 3 || r.ContainerUUID == first {
		t.Errorf("request: %d containers, %v", r.ContainerCount, err)
	}
	c := w.container(first)
	if c.State != "Cancelled" || !strings.Contains(fmt.Sprint(c.RuntimeStatus["error"]), "ended without") || c.RuntimeStatus["activity"] != "testing" {
		t.Errorf("first container: %s %v", c.State, c.RuntimeStatus)
	}
}

// Stopping interrupts what runs, waits for it, and starts nothing more.
func TestStop(t *testing.T) {
	w := newWorld(t)
	_, a := w.submit(10, 1)
	_, b := w.submit(9, 1)
	_, c := w.submit(8, 1)
	stop := w.dispatch(2, "wait")
	w.waitState(a, "Running")
	w.waitState(b, "Running")
	stop()
	for uuid, want := range map[string]string{a: "Cancelled", b: "Cancelled", c: "Queued"} {
		if got := w.container(uuid).State; got != want {
			t.Errorf("%s is %s, want %s", uuid, got, want)
		}
	}
	w.allGone()
}

// A supervisor that does not stop is killed in the end, and its container is
// not left running.
func TestStopStubborn(t *testing.T) {
	w := newWorld(t)
	_, a := w.submit(1, 1)
	stop := w.dispatch(1, "stubborn", func(c *Config) { c.Grace = 100 * time.Millisecond })
	w.waitFor("it runs", func() bool { return w.count("running", a) == 1 })
	stop()
	if got := w.container(a).State; got != "Cancelled" {
		t.Errorf("container is %s", got)
	}
	w.allGone()
}

// A program that cannot be started at all is a crash like others.
func TestNoProgram(t *testing.T) {
	w := newWorld(t)
	_, a := w.submit(1, 1)
	w.dispatch(1, "", func(c *Config) { c.Command = func(string) *exec.Cmd { return exec.Command("/nonexistent/crunch-run") } })
	w.waitState(a, "Cancelled")
}

// allGone fails for supervisors that live.
func (w *world) allGone() {
	w.t.Helper()
	for _, e := range w.history() {
		if syscall.Kill(e.pid, 0) == nil {
			w.t.Errorf("process %d lives on", e.pid)
		}
	}
}

func dispatcherProcess() int {
	cfg, _ := arvados.ConfigFromEnv(os.LookupEnv)
	api, err := arvados.NewClient(cfg)
	if err != nil {
		return 1
	}
	d, err := New(context.Background(), Config{API: api, Slots: 5, Poll: 20 * time.Millisecond, Command: func(uuid string) *exec.Cmd {
		role := "stubborn"
		if uuid == os.Getenv("LOCKED_ONE") {
			role = "crash-locked"
		}
		cmd := exec.Command("/proc/self/exe", uuid)
		cmd.Env = append(os.Environ(), roleEnv+"="+role)
		return cmd
	}})
	if err != nil {
		return 1
	}
	d.Run(context.Background(), context.Background())
	return 0
}

// A dispatcher that is killed takes its supervisors with it, and the next one
// puts the records right. What others have locked is not its business.
func TestKilledDispatcher(t *testing.T) {
	w := newWorld(t)
	_, running := w.submit(10, 1)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stderr = w.env("dispatcher"), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	w.waitFor("it runs", func() bool { return w.count("running", running) == 1 })
	cmd.Process.Kill()
	cmd.Wait()
	w.waitFor("its supervisor is gone", func() bool {
		return !slices.ContainsFunc(w.history(), func(e event) bool { return alive(e.pid) })
	})
	_, locked := w.submit(5, 1)
	_, foreign := w.submit(4, 1)
	other := w.user.WithToken(w.cluster.DispatcherToken())
	for uuid, api := range map[string]*arvados.Client{locked: w.own, foreign: other} {
		if _, err := api.Lock(t.Context(), uuid); err != nil {
			t.Fatal(err)
		}
	}
	d, err := New(t.Context(), Config{API: w.own, Command: nil})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	for uuid, want := range map[string]string{running: "Cancelled", locked: "Queued", foreign: "Locked"} {
		if got := w.container(uuid).State; got != want {
			t.Errorf("%s is %s, want %s", uuid, got, want)
		}
	}
}

// alive tells whether a process runs; a zombie, which somebody else has to
// reap, does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// What cannot work is refused at once; what is known of an end is kept.
func TestConfig(t *testing.T) {
	w := newWorld(t)
	_, err := New(t.Context(), Config{API: w.user.WithToken("v2/local-gj3su-000000000000001/wrong"), Slots: 1})
	if !arvados.IsStatus(err, http.StatusUnauthorized) {
		t.Errorf("wrong token: %v", err)
	}
	if _, err := New(t.Context(), Config{API: w.own, Slots: -1}); err == nil {
		t.Error("-1 slots were accepted")
	}
	var status map[string]any
	if err := json.Unmarshal(json.RawMessage(`{"error":"mine","warning":"w"}`), &status); err != nil {
		t.Fatal(err)
	}
	if got := lostStatus(status); got["error"] != "mine" || got["warning"] != "w" {
		t.Errorf("an error that is said already is lost: %v", got)
	}
}
