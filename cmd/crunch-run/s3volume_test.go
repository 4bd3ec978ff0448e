package main_test

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/keep/keepstore/s3test"
)

// bucket is a BlockStore of the blocks in an S3 volume: no server is asked.
type bucket struct{ *s3test.Server }

func (b bucket) ReadBlock(_ context.Context, loc keep.Locator) ([]byte, error) {
	data := b.Read(loc.Hash())
	if hashOf(string(data)) != loc.Hash() {
		return nil, keep.ErrChecksum
	}
	return data, nil
}

func (b bucket) WriteBlock(context.Context, []byte, keep.WriteOptions) (keep.Locator, error) {
	return keep.Locator{}, errors.New("read only")
}

func hashOf(data string) string {
	sum := md5.Sum([]byte(data))
	return hex.EncodeToString(sum[:])
}

// takeOver moves all blocks of a cluster into the bucket.
func (b bucket) takeOver(t *testing.T, n *node, c *cluster) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(n.dir, "cluster/keep/???/*"))
	if err != nil || len(found) == 0 {
		t.Fatal(found, err)
	}
	for _, path := range found {
		b.Write(filepath.Base(path), []byte(readFile(t, path)))
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	c.blocks, c.all = b, b
}

// A node-local keepstore on an S3 volume serves a whole run: image, input,
// output and log. It is killed while it reads a block from the bucket, and while
// it writes one, and nobody but the log knows.
func TestLocalKeepstoreOnS3(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	const input, output = "the only block of the input\n", "what the container leaves\n"
	request := withInput(c.store(t, map[string][]byte{"a.txt": []byte(input)}))
	request["runtime_constraints"] = attrs{"vcpus": 2, "ram": 256 << 20}
	uuid := c.submit(t, image, sh("cat /in/a.txt; printf '"+output+"' >f"), request)
	b := bucket{s3test.Start(t, "../..")}
	b.takeOver(t, n, c)

	supervisor := make(chan int, 1)
	pid := sync.OnceValue(func() int { return <-supervisor })
	var mu sync.Mutex
	kills := map[string]bool{"GET " + hashOf(input): true, "PUT " + hashOf(output): true}
	b.Fail(func(_ http.ResponseWriter, r *http.Request) bool {
		what := r.Method + " " + path.Base(r.URL.Path)
		mu.Lock()
		wanted := kills[what]
		delete(kills, what)
		mu.Unlock()
		if !wanted {
			return false
		}
		if err := syscall.Kill(findChild(pid(), "keepstore -config=-"), syscall.SIGKILL); err != nil {
			t.Errorf("kill the keepstore: %v", err)
		}
		// It cannot have seen an answer.
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		return true
	})
	p := c.superviseLocal(t, n, uuid, func(cluster map[string]any) {
		v := section(section(cluster, "Volumes"), localVolume)
		v["Driver"], v["DriverParameters"] = "S3", map[string]any{"Bucket": s3test.Bucket, "Endpoint": b.URL, "AccessKeyID": s3test.Key, "SecretAccessKey": s3test.Secret}
	})
	supervisor <- p.cmd.Process.Pid
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if got := c.files(t, record.Output); len(got) != 1 || got["f"] != output {
		t.Errorf("output %q", got)
	}
	logs := c.logs(t, record)
	if out := stamped(t, logs["stdout.txt"]); out != input {
		t.Errorf("stdout %q", out)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(kills) > 0 {
		t.Errorf("requests that never came: %v", kills)
	}
	const died = "local keepstore process ended: signal: killed -- starting it again in "
	mustSayInOrder(t, logs["crunch-run.txt"], "using local keepstore process (pid ", died+"1s", died+"2s", "Complete")
	if text := logs["keepstore.txt"]; strings.Count(text, `"msg":"listening"`) != 3 || strings.Contains(text, s3test.Secret) {
		t.Errorf("keepstore.txt:\n%s", text)
	}
	if left, _ := filepath.Glob(filepath.Join(n.dir, "cluster/keep/???/*")); len(left) > 0 {
		t.Errorf("blocks that are not in the bucket: %q", left)
	}
}
