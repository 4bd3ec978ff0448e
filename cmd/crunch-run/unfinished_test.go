package main_test

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"crunch-oci/arvados"
)

// apiDoor leads to a cluster's API until it is shut: then connections are
// refused, and those there are break.
type apiDoor struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	conns []net.Conn
	shut  bool
	busy  sync.WaitGroup
}

func openDoor(t testing.TB, c *cluster) *apiDoor {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &apiDoor{listener: l, target: c.env["ARVADOS_API_HOST"]}
	d.busy.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			d.busy.Go(func() { d.carry(in) })
		}
	})
	t.Cleanup(func() {
		d.close()
		d.busy.Wait()
	})
	return d
}

func (d *apiDoor) carry(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", d.target)
	if err != nil {
		return
	}
	defer out.Close()
	d.mu.Lock()
	d.conns = append(d.conns, in, out)
	shut := d.shut
	d.mu.Unlock()
	if shut {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
	both.Go(func() { _, _ = io.Copy(in, out); _ = in.Close() })
	both.Wait()
}

func (d *apiDoor) close() {
	_ = d.listener.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = true
	for _, c := range d.conns {
		_ = c.Close()
	}
}

// A result that the API could not be given is kept without secrets, and an
// operator brings it home.
func TestUnfinishedResults(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	env := append(c.supervisorEnv(), "CRUNCH_RUN_UNFINISHED_DIR="+n.unfinished())

	// The API goes away while the container runs.
	uuid := c.submit(t, image, sh("echo precious >f; echo said; while ! [ -e go ]; do sleep 0.1; done; rm go"), nil)
	door := openDoor(t, c)
	p := n.start(t, run{args: []string{uuid}, env: append(c.supervisorEnv(),
		"ARVADOS_API_HOST="+door.listener.Addr().String(), "ARVADOS_KEEP_SERVICES="+c.keepURL)})
	p.stderr.mustSay(t, "Waiting for container to finish")
	door.close()
	var out []string
	waitFor(t, "the container's output", func() bool {
		out, _ = filepath.Glob(filepath.Join(n.tmp(), "crunch-run."+uuid+".*", "*", "f"))
		return len(out) == 1
	})
	if err := os.WriteFile(filepath.Join(filepath.Dir(out[0]), "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(n.unfinished(), uuid+".json")
	waitFor(t, "the results on the disk", func() bool {
		text, err := os.ReadFile(kept)
		return err == nil && strings.Contains(string(text), `:f\n`)
	})
	list := func(t *testing.T) (entries []struct {
		UUID  string
		InUse bool `json:"in_use"`
	}) {
		t.Helper()
		res := n.run(t, "unfinished", "list", "--json")
		if err := json.Unmarshal([]byte(res.stdout), &entries); err != nil || res.code != 0 {
			t.Fatalf("%v: %+v", err, res)
		}
		return entries
	}
	if l := list(t); len(l) != 1 || l[0].UUID != uuid || !l[0].InUse {
		t.Errorf("list: %+v", l)
	}
	if res := n.run(t, "unfinished", "drop", uuid); res.code != 1 || !strings.Contains(res.stderr, "in use") {
		t.Errorf("dropped although its supervisor is alive: %+v", res)
	}
	p.signal(t, syscall.SIGKILL)
	n.waitDead(t)
	text, err := os.ReadFile(filepath.Join(n.unfinished(), uuid+".json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range append(c.ledger.hidden(), "+A") {
		if strings.Contains(string(text), secret) {
			t.Errorf("%q is in it:\n%s", secret, text)
		}
	}
	if res := n.run(t, "unfinished", "list"); !strings.Contains(res.stdout, uuid) || !strings.Contains(res.stdout, "has died") {
		t.Errorf("list: %s", res.stdout)
	}

	// A user's token cannot do it, and nothing is lost by trying.
	user := append(env, "ARVADOS_API_TOKEN="+c.env["ARVADOS_API_TOKEN"])
	failed := n.start(t, run{args: []string{"unfinished", "deliver", uuid}, env: user})
	if code := failed.wait(t); code != 1 {
		t.Errorf("delivered by a user: %s%s", failed.stdout.String(), failed.stderr.String())
	}
	if l := list(t); len(l) != 1 || l[0].InUse {
		t.Errorf("list: %+v", l)
	}
	done := n.start(t, run{args: []string{"unfinished", "deliver", "--json", "--all"}, env: env})
	if code := done.wait(t); code != 0 {
		t.Fatalf("deliver: %s", done.stderr.String())
	}
	var delivered []struct {
		OutputUUID string `json:"output_uuid"`
		LogUUID    string `json:"log_uuid"`
		Updated    bool
	}
	if err := json.Unmarshal([]byte(done.stdout.String()), &delivered); err != nil || len(delivered) != 1 || !delivered[0].Updated {
		t.Fatalf("delivered: %v %s", err, done.stdout.String())
	}
	record := c.container(t, uuid)
	if record.State != arvados.StateComplete || record.ExitCode == nil || *record.ExitCode != 0 {
		t.Errorf("record: %s, %v", record.State, record.ExitCode)
	}
	for _, output := range []string{delivered[0].OutputUUID, record.Output} {
		if got := c.file(t, output, "f"); got != "precious\n" {
			t.Errorf("output %q", got)
		}
	}
	if got := stamped(t, c.file(t, delivered[0].LogUUID, "stdout.txt")); got != "said\n" {
		t.Errorf("log %q", got)
	}

	if res := n.run(t, "unfinished", "list"); res.code != 0 || res.stdout != "no unfinished results on this node\n" {
		t.Errorf("list: %+v", res)
	}

	// A supervisor that died when the cluster had it all, before it removed it.
	for how, forget := range map[string]func(){
		"deliver": func() {
			done := n.start(t, run{args: []string{"unfinished", "deliver", uuid}, env: env})
			if code := done.wait(t); code != 0 || !strings.Contains(done.stdout.String(), "has all of it already") {
				t.Errorf("deliver: %d %s%s", code, done.stdout.String(), done.stderr.String())
			}
		},
		"the next run": func() {
			again := c.submit(t, image, sh("sleep 1000"), nil)
			p := c.supervise(t, n, again)
			p.stderr.mustSay(t, "the cluster has the results of "+uuid+" already")
			p.stderr.mustSay(t, "Waiting for container to finish")
			p.signal(t, syscall.SIGTERM)
			c.finished(t, n, p, again, 0, arvados.StateCancelled)
		},
	} {
		// The door is not there any more: it is the cluster's own address by which
		// a supervisor would have reached it.
		same := strings.Replace(string(text), door.listener.Addr().String(), c.env["ARVADOS_API_HOST"], 1)
		if err := os.WriteFile(kept, []byte(same), 0o600); err != nil {
			t.Fatal(err)
		}
		forget()
		if _, err := os.Stat(kept); err == nil {
			t.Errorf("%s: it is still there", how)
		}
	}

	// The other way: not wanted.
	if err := os.WriteFile(filepath.Join(n.unfinished(), uuid+".json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if res := n.run(t, "unfinished", "drop", uuid); res.code != 0 || res.stdout != "dropped "+uuid+"\n" {
		t.Errorf("drop: %+v", res)
	}
	// What the killed supervisors left is for the next start.
	c.runOne(t, n, image, sh("true"), nil)
}

// All of the cluster is away when a container ends; its result waits.
func TestClusterAwayAtTheEnd(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("echo precious >f; sleep 2"), nil)
	p := c.supervise(t, n, uuid)
	p.stderr.mustSay(t, "Waiting for container to finish")
	c.process.signal(t, syscall.SIGKILL)
	p.stderr.mustSay(t, "Container exited with status code 0")
	c.restart(t, n)
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if got := c.file(t, record.Output, "f"); got != "precious\n" {
		t.Errorf("output %q", got)
	}
}
