package main_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/internal/forkthread"
)

// chaosInside is set in the process that TestChaos runs again in a network
// namespace of its own.
const chaosInside = "CRUNCH_RUN_TEST_CHAOS_INSIDE"

// chaosSeed makes the choices of TestChaos those of an earlier run; the moments
// are the machine's.
const chaosSeed = "CRUNCH_RUN_TEST_SEED"

// TestChaos runs one container after the other on a node, a few at a time: in
// the foreground, in the background, and by the cluster's own dispatcher; every
// third with a bridge network. In half of them the supervisor, its FUSE server
// or a process of the container is killed at a random moment. One list later
// nothing of all of them is left, and the processes that live long hold as many
// files as in the beginning. CRUNCH_RUN_TEST_LONG=1 makes it 1,000 containers
// instead of 24.
func TestChaos(t *testing.T) {
	t.Parallel()
	if os.Getenv(chaosInside) == "" {
		again := exec.Command("unshare", "--net", os.Args[0], "-test.run=^TestChaos$", "-test.v", "-test.timeout=4h")
		again.Env = append(os.Environ(), chaosInside+"=1", programVar+"="+program)
		again.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var out bytes.Buffer
		again.Stdout, again.Stderr = &out, &out
		var err error
		forkthread.Do(func() { err = again.Start() })
		if err == nil {
			err = again.Wait()
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out.String())
		} else {
			t.Log(out.String())
		}
		return
	}
	count := 24
	if os.Getenv("CRUNCH_RUN_TEST_LONG") != "" {
		count = 1000
	}
	seed := rand.Uint64()
	if text := os.Getenv(chaosSeed); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", chaosSeed, err)
		}
	}
	t.Logf("%s=%d", chaosSeed, seed)

	const net = "/proc/self/ns/net"
	in(t, net, "ip link set lo up; ip link add uplink type veth peer name far; ip addr add 192.0.2.2/24 dev uplink; ip link set uplink up; ip link set far up; ip route add default via 192.0.2.1; sysctl -qw net.ipv4.ip_forward=1")
	n := newNode(t)
	n.netns = net
	before := n.network(t)
	x := &chaos{n: n, own: startCluster(t, n), typical: time.Second, ends: make(map[string]int)}
	dispatching := n.start(t, run{
		args: []string{"cluster", "--dir", filepath.Join(n.dir, "dispatching"), "--dispatch", "2"}, env: []string{"CRUNCH_RUN_NETWORK=bridge"}})
	x.other = connectCluster(t, dispatching)
	x.images = map[*cluster]string{x.own: x.own.storeTools(t), x.other: x.other.storeTools(t)}
	x.inputs = map[*cluster]string{}
	for _, c := range []*cluster{x.own, x.other} {
		x.inputs[c] = c.store(t, map[string][]byte{"a.txt": []byte("A")})
	}

	var wg sync.WaitGroup
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 0))
	next := 0
	var files map[*process]map[string]int
	for range 3 {
		wg.Go(func() {
			for {
				mu.Lock()
				plan := newChaosPlan(random, next)
				next++
				if next == 4+count/10 { // all there is has been used
					files = x.files()
				}
				mu.Unlock()
				if plan.number >= count || t.Failed() {
					return
				}
				x.one(t, plan)
				if plan.number%100 == 99 {
					t.Logf("%d containers, usually %v each", plan.number+1, x.usually())
				}
			}
		})
	}
	wg.Wait()
	for p, then := range files {
		now := x.files()[p]
		t.Logf("open files of %v: %v, then %v", p.cmd.Args[1:], then, now)
		if total(now) > total(then)+10 || now["net"]+now["mnt"] > 0 {
			t.Errorf("open files of %v: were %v, are %v", p.cmd.Args[1:], then, now)
		}
	}
	dispatching.signal(t, syscall.SIGTERM)
	if code := dispatching.wait(t); code != 0 {
		t.Errorf("the dispatching cluster ended with %d", code)
	}
	n.waitDead(t)
	n.list(t)
	if res := n.run(t, "unfinished", "drop", "--all"); res.code != 0 { // kept for an operator, on purpose
		t.Errorf("drop what is unfinished: %+v", res)
	}
	locks, _ := filepath.Glob(filepath.Join(n.locks(), "crunch-run-*-dz642-*.lock"))
	for _, path := range locks {
		if info, err := os.Stat(path); err == nil && info.Size() == 0 { // lists leave those alone: one may be in the making
			_ = os.Remove(path)
		}
	}
	n.mustBeClean(t)
	if after := n.network(t); after != before {
		t.Errorf("interfaces and rules:\n%s\nwant:\n%s", after, before)
	}
	for _, end := range slices.Sorted(maps.Keys(x.ends)) {
		t.Logf("%4d %s", x.ends[end], end)
	}
}

func total(of map[string]int) (sum int) {
	for _, k := range of {
		sum += k
	}
	return sum
}

// chaosPlan is what was decided for one container.
type chaosPlan struct {
	number int
	mode   string // foreground, background, dispatched
	bridge bool
	victim string  // "", supervisor, keep-mount, container
	moment float64 // when, in parts of a usual run
	pick   int     // which of several
	forget bool    // the image is unpacked again by somebody
}

func newChaosPlan(random *rand.Rand, number int) chaosPlan {
	p := chaosPlan{
		number: number,
		mode:   []string{"foreground", "background", "dispatched"}[random.IntN(3)],
		bridge: random.IntN(3) == 0,
		moment: random.Float64(),
		pick:   random.IntN(1000),
		forget: random.IntN(8) == 0,
	}
	// More than half: some runs are over before their moment comes.
	if kill := random.IntN(9); kill < 6 {
		p.victim = []string{"supervisor", "keep-mount", "container"}[kill%3]
	}
	return p
}

func (p chaosPlan) String() string {
	return fmt.Sprintf("container %d, %s, bridge %v, kill %q at %.2f", p.number, p.mode, p.bridge, p.victim, p.moment)
}

// chaos is a node where everything may be killed.
type chaos struct {
	n          *node
	own, other *cluster // other dispatches by itself
	images     map[*cluster]string
	inputs     map[*cluster]string

	mu      sync.Mutex
	typical time.Duration // of a run
	ends    map[string]int
}

func (x *chaos) usually() time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.typical
}

// files are the open files of the processes that live long, by kind.
func (x *chaos) files() map[*process]map[string]int {
	all := make(map[*process]map[string]int)
	for _, c := range []*cluster{x.own, x.other} {
		kinds := make(map[string]int)
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.process.cmd.Process.Pid))
		for _, link := range links {
			target, err := os.Readlink(link)
			if err != nil {
				continue
			}
			kind, _, found := strings.Cut(target, ":[")
			if !found && !strings.HasPrefix(kind, "anon_inode") {
				kind = "file"
			}
			kinds[kind]++
		}
		all[c.process] = kinds
	}
	return all
}

// one runs one container, and kills what it is told to.
func (x *chaos) one(t *testing.T, plan chaosPlan) {
	began := time.Now()
	c := x.own
	if plan.mode == "dispatched" {
		c = x.other
	}
	other := withInput(x.inputs[c])
	var flags []string
	if plan.bridge && plan.mode == "dispatched" {
		other["runtime_constraints"] = attrs{"vcpus": 1, "ram": 64 << 20, "API": true}
	} else if plan.bridge {
		flags = []string{"-container-enable-networking=always", "-container-network-mode=bridge"}
	}
	r := c.request(t, x.images[c], sh("cat /in/a.txt; ls /sys/class/net; mkdir -p d/d; echo data >d/d/data.txt; (sleep 0.1 & wait); echo done"), other)
	uuid := r.ContainerUUID

	var p *process
	ended := func() bool { return x.n.supervisor(uuid) == 0 }
	switch plan.mode {
	case "foreground":
		c.lock(t, uuid)
		p = c.supervise(t, x.n, uuid, flags...)
		ended = func() bool {
			select {
			case <-p.done:
				return true
			default:
				return false
			}
		}
	case "background":
		c.lock(t, uuid)
		x.n.detach(t, c, uuid, flags...)
	case "dispatched":
		ended = func() bool {
			r, err := c.user.GetContainerRequest(t.Context(), r.UUID)
			return err != nil || r.State == arvados.RequestFinal
		}
	}

	hit := "nothing"
	if plan.victim != "" {
		timer := time.NewTimer(time.Duration(plan.moment * float64(x.usually())))
		<-timer.C
		for hit == "nothing" && !ended() {
			if pids := x.n.victims(uuid, plan.victim); len(pids) > 0 {
				if syscall.Kill(pids[plan.pick%len(pids)], syscall.SIGKILL) == nil {
					hit = plan.victim
				}
			} else {
				time.Sleep(2 * time.Millisecond) // it will be there soon, or the run will end
			}
		}
	}
	if plan.mode == "dispatched" || p == nil {
		waitFor(t, plan.String()+": the end", ended)
	} else {
		p.wait(t)
	}
	if hit == "supervisor" {
		waitFor(t, plan.String()+": the end of the container", func() bool { return len(x.n.victims(uuid, "container")) == 0 })
	}
	record := c.container(t, uuid)
	end := fmt.Sprintf("%-11s killed: %-10s state %s", plan.mode, hit, record.State)
	if record.ExitCode != nil {
		end += fmt.Sprintf(", exit code %d", *record.ExitCode)
	}
	x.mu.Lock()
	x.ends[end]++
	if hit == "nothing" && plan.mode == "foreground" {
		x.typical = (4*x.typical + time.Since(began)) / 5
	}
	x.mu.Unlock()

	allowed := []string{arvados.StateComplete}
	switch hit {
	case "nothing":
		if record.ExitCode == nil || *record.ExitCode != 0 {
			t.Errorf("%v: %s, %v", plan, end, record.RuntimeStatus)
		} else if got := c.files(t, record.Output); got["d/d/data.txt"] != "data\n" {
			t.Errorf("%v: output %q", plan, got)
		} else if out, want := stamped(t, c.log(t, record, "stdout.txt")), map[bool]string{true: "Aeth0\nlo\ndone\n", false: "Alo\ndone\n"}[plan.bridge]; out != want {
			t.Errorf("%v: says %q, want %q", plan, out, want)
		}
	case "supervisor": // a dispatcher's business
		allowed = append(allowed, arvados.StateLocked, arvados.StateRunning, arvados.StateCancelled, arvados.StateQueued)
	case "keep-mount":
		allowed = append(allowed, arvados.StateCancelled, arvados.StateQueued)
	case "container": // before it was Running, or before the user's program
		allowed = append(allowed, arvados.StateQueued, arvados.StateCancelled)
	}
	if !slices.Contains(allowed, record.State) {
		t.Errorf("%v: %s: %v", plan, end, record.RuntimeStatus)
	}
	if p != nil && hit != "supervisor" {
		if p.code != 0 && p.code != 1 {
			t.Errorf("%v: exit code %d\n%s", plan, p.code, tail(p.stderr.String(), 4000))
		}
		left, err := x.n.leftovers()
		for _, l := range left {
			if strings.Contains(l, uuid) || err != nil {
				t.Errorf("%v: left behind: %s %v", plan, l, err)
			}
		}
	}
	if plan.mode != "dispatched" && record.State == arvados.StateQueued {
		_, err := c.user.UpdateContainerRequest(t.Context(), r.UUID, map[string]any{"priority": 0})
		if err != nil {
			t.Error(err)
		}
	}
	if plan.forget && plan.number%2 == 0 {
		if res := x.n.call(t, "", "image", "prune", "--all"); res.code != 0 {
			t.Errorf("image prune: %+v", res)
		}
	}
}

// supervisor is the process id of a container's supervisor; 0 if there is none.
func (n *node) supervisor(uuid string) int {
	for _, f := range n.processes() {
		if !f.contained && strings.HasSuffix(f.command, uuid) {
			return f.pid
		}
	}
	return 0
}

// victims are the processes of a kind that belong to a container.
func (n *node) victims(uuid, kind string) (pids []int) {
	supervisor := n.supervisor(uuid)
	if kind == "supervisor" {
		if supervisor != 0 {
			pids = []int{supervisor}
		}
		return pids
	}
	for _, f := range n.processes() {
		dir := fmt.Sprintf("/proc/%d/", f.pid)
		stat, _ := os.ReadFile(dir + "stat") // of one that has just ended there is nothing to be read
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		child := len(fields) > 1 && supervisor != 0 && fields[1] == strconv.Itoa(supervisor)
		groups, _ := os.ReadFile(dir + "cgroup")
		switch kind {
		case "keep-mount":
			if child && strings.Contains(f.command, "keep-mount") {
				pids = append(pids, f.pid)
			}
		case "container":
			if f.contained && bytes.Contains(groups, []byte(uuid)) || child && strings.HasSuffix(f.command, " init") {
				pids = append(pids, f.pid)
			}
		}
	}
	return pids
}
