package localcluster

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"crunch-oci/internal/forkthread"
)

// childEnv makes the test binary run a cluster in that directory until its
// standard input ends.
const childEnv = "LOCALCLUSTER_TEST_CHILD"

// noSyncEnv makes it do without fsync, which a kill does not need.
const noSyncEnv = "LOCALCLUSTER_TEST_NOSYNC"

type childInfo struct {
	Host, CA, Keep, User, Dispatcher, Admin string
	PID                                     int
}

func childMain(dir string) int {
	c, err := Start(context.Background(), Options{Dir: dir, ClusterID: "zzzzz", NoSync: os.Getenv(noSyncEnv) != ""})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	json.NewEncoder(os.Stdout).Encode(childInfo{c.Host(), c.CAFile(), c.KeepURL(), c.UserToken(), c.DispatcherToken(), c.AdminToken(), os.Getpid()})
	io.Copy(io.Discard, os.Stdin)
	if err := c.Close(); err != nil {
		return 1
	}
	return 0
}

// startChild runs a cluster in another process. kill ends it like the kernel
// would.
func startChild(t testing.TB, dir string) (info childInfo, kill func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			cmd.Process.Kill()
			cmd.Wait()
			stdin.Close()
		})
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the child did not start: %v", err)
	}
	if err := json.Unmarshal([]byte(line), &info); err != nil {
		t.Fatal(err)
	}
	return info, kill
}

// Killed in the middle of writes, the cluster has every write that it answered
// to, and nothing is half done.
func TestKillLosesNothing(t *testing.T) {
	dir := t.TempDir()
	type made struct{ uuid, data string }
	var collections []made
	containers := map[string]string{} // state last acknowledged
	for round := range 3 {
		info, kill := startChild(t, dir)
		user := newClient(t, info.Host, info.CA, info.User)
		user.keep = info.Keep
		dispatcher := user.as(info.Dispatcher)
		if round == 0 {
			user.image("busybox:latest")
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		enough := make(chan struct{}) // closed after some writes of everybody
		var count sync.WaitGroup
		count.Add(8 * 5)
		for w := range 8 {
			wg.Go(func() {
				left := 5
				defer func() { // whatever happens, nobody waits for us
					for ; left > 0; left-- {
						count.Done()
					}
				}()
				for i := 0; ; i++ {
					data := fmt.Sprintf("block %d %d %d", round, w, i)
					if w%2 == 0 {
						locator, err := user.try("PUT", user.keep+"/"+md5Hex(data), nil, []byte(data))
						if err != nil {
							return
						}
						a, err := user.try("POST", user.base+"/arvados/v1/collections", jsonHeader, encode(obj{"collection": obj{
							"name": data, "manifest_text": ". " + strings.TrimSpace(string(locator.body)) + fmt.Sprintf(" 0:%d:f\n", len(data))}}))
						if err != nil {
							return
						}
						if a.status != 200 {
							t.Errorf("create: %d %s", a.status, a.body)
							return
						}
						mu.Lock()
						collections = append(collections, made{str(a.obj, "uuid"), data})
						mu.Unlock()
					} else {
						a, err := user.try("POST", user.base+"/arvados/v1/container_requests", jsonHeader, encode(request(nil)))
						if err != nil {
							return
						}
						if a.status != 200 {
							t.Errorf("submit: %d %s", a.status, a.body)
							return
						}
						uuid := str(a.obj, "container_uuid")
						mu.Lock()
						containers[uuid] = "Queued"
						mu.Unlock()
						if a, err = dispatcher.try("POST", user.base+"/arvados/v1/containers/"+uuid+"/lock", nil, nil); err != nil {
							return
						}
						if a.status == 200 {
							mu.Lock()
							containers[uuid] = "Locked"
							mu.Unlock()
						}
					}
					if left > 0 {
						left--
						count.Done()
					}
				}
			})
		}
		go func() { count.Wait(); close(enough) }()
		<-enough
		kill()
		wg.Wait()
	}
	c := start(t, Options{Dir: dir})
	user := clientOf(t, c, c.UserToken())
	for _, m := range collections {
		coll := user.must("GET", "collections/"+m.uuid, nil)
		locator := strings.Fields(str(coll, "manifest_text"))[1]
		if a := user.send("GET", user.keep+"/"+locator, nil, nil); a.status != 200 || string(a.body) != m.data {
			t.Errorf("%s: block is %q, want %q", m.uuid, a.body, m.data)
		}
	}
	for uuid, state := range containers {
		got := user.must("GET", "containers/"+uuid, nil)
		locked := got["state"] == "Locked"
		if state == "Locked" && !locked {
			t.Errorf("%s is %v, was Locked", uuid, got["state"])
		}
		if locked != (got["auth_uuid"] != nil) || locked != (got["locked_by_uuid"] != nil) {
			t.Errorf("%s is half locked: %v", uuid, got)
		}
	}
	if len(collections) < 40 || len(containers) < 40 {
		t.Errorf("only %d collections, %d containers", len(collections), len(containers))
	}
}

// Fifty clients at once: each container is locked by exactly one of those that
// race for it, and everybody's work is done.
func TestFiftyClients(t *testing.T) {
	p := setUp(t)
	const clients, each = 50, 2
	var mu sync.Mutex
	locked := map[string]int{}
	var wg sync.WaitGroup
	queue := make(chan string, clients*each*2)
	for range clients {
		wg.Go(func() {
			for range each {
				a, err := p.user.try("POST", p.user.base+"/arvados/v1/container_requests", jsonHeader, encode(request(obj{"container_count_max": 1})))
				if err != nil || a.status != 200 {
					t.Errorf("submit: %v %s", err, a.body)
					continue
				}
				uuid := str(a.obj, "container_uuid")
				queue <- uuid
				queue <- uuid // for a rival
			}
		})
	}
	wg.Wait()
	close(queue)
	for range clients {
		wg.Go(func() {
			for uuid := range queue {
				url := p.user.base + "/arvados/v1/containers/" + uuid
				a, err := p.dispatcher.try("POST", url+"/lock", nil, nil)
				if err != nil {
					t.Error(err)
					continue
				}
				if a.status == 422 {
					continue // the rival has it
				}
				mu.Lock()
				locked[uuid]++
				mu.Unlock()
				for _, state := range []string{"Running", "Complete"} {
					a, err := p.dispatcher.try("PUT", url, jsonHeader, encode(obj{"container": obj{"state": state}, "select": []string{"uuid"}}))
					if err != nil || a.status != 200 {
						t.Errorf("to %s: %v %s", state, err, a.body)
					}
				}
			}
		})
	}
	wg.Wait()
	if len(locked) != clients*each {
		t.Errorf("%d containers were locked, want %d", len(locked), clients*each)
	}
	for uuid, n := range locked {
		if n != 1 {
			t.Errorf("%s was locked %d times", uuid, n)
		}
	}
	a := p.user.get("container_requests", map[string]string{"filters": `[["state","=","Final"]]`, "limit": "0"})
	if n, _ := a.obj["items_available"].(json.Number); n.String() != fmt.Sprint(clients*each) {
		t.Errorf("%v requests are Final", n)
	}
}
