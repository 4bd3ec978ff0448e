package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync"

	"crunch-oci/arvados"
	"crunch-oci/internal/undo"
	"crunch-oci/keep/keepstore"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/joblog"
	"crunch-oci/supervisor/localkeep"
)

// localKeepstore is the node's own block server, or the reason why there is none.
type localKeepstore struct {
	server *localkeep.Server // nil: there is none
	logs   joblog.KeepstoreLogs
	output keepstoreOutput
	stderr io.Writer

	mu   sync.Mutex
	said []string // what is to be in the log, once there is one
}

// startKeepstore starts a block server on this node if the conditions hold, and
// has everything in this run use it. Not starting one is always right.
func (j *Job) startKeepstore(ctx, stop context.Context, api *arvados.Client, cleanup *undo.Stack) *localKeepstore {
	k := &localKeepstore{stderr: j.Stderr, logs: joblog.KeepstoreNone}
	k.output.stderr = j.Stderr
	early, cancel := endedBy(ctx, stop)
	defer cancel()
	id, raw, buffers := j.keepConfig(early, api, k)
	cluster, err := parsedCluster(raw)
	if err != nil {
		k.say("not starting a local keepstore process: %v", err)
		return k
	}
	if reason, ok := localkeep.Decide(buffers, cluster); !ok {
		k.say("%s", reason)
		return k
	}
	if k.logs, err = joblog.ParseKeepstoreLogs(cluster.Containers.LocalKeepLogsToContainerLog); err != nil {
		k.say("not starting a local keepstore process: invalid value for Containers.LocalKeepLogsToContainerLog: %q", cluster.Containers.LocalKeepLogsToContainerLog)
		return k
	}
	var unusable *keepstore.VolumeError
	if _, err := keepstore.ConfigFromCluster(raw, ""); errors.As(err, &unusable) {
		k.say("%v; using the cluster's keep services", err)
		return k
	}
	cfg := localkeep.Config{
		Command: []string{"/proc/self/exe", "keepstore", "-config=-"}, ClusterID: id, Cluster: raw,
		ManagementToken: cluster.ManagementToken, Buffers: buffers, Output: &k.output, Logf: k.say,
	}
	if j.RunLock != nil {
		cfg.Inherit = []*os.File{j.RunLock}
	}
	if k.server, err = localkeep.Start(early, cfg); err != nil {
		k.say("not using a local keepstore process: %v; using the cluster's keep services", err)
		return k
	}
	cleanup.Add("stop the local keepstore", func(context.Context) error { return k.server.Close() })
	j.Cluster.KeepServices = []string{k.server.URL()}
	return k
}

// sayNoKeepstore says on stderr why there is no keepstore, where the API cannot
// be asked how many buffers it may have.
func (j *Job) sayNoKeepstore() {
	buffers, raw := 0, j.ClusterFile.Config
	if j.Message != nil {
		buffers, raw = j.Message.KeepBuffers, j.Message.Cluster
	}
	cluster, err := parsedCluster(raw)
	if err != nil {
		return
	}
	if reason, ok := localkeep.Decide(buffers, cluster); !ok {
		fmt.Fprintln(j.Stderr, reason)
	}
}

// keepConfig finds the cluster's configuration, and how many buffers a server may
// have: those of this container, not those of all on the node.
func (j *Job) keepConfig(ctx context.Context, api *arvados.Client, k *localKeepstore) (id string, raw json.RawMessage, buffers int) {
	if j.Message != nil {
		buffers, raw = j.Message.KeepBuffers, j.Message.Cluster
		cluster, err := parsedCluster(raw)
		if buffers < 1 || cluster == nil || err != nil {
			return j.UUID[:5], raw, buffers
		}
		if share, err := j.bufferShare(ctx, api, cluster); err == nil && share > 0 {
			buffers = min(buffers, share)
		}
		return j.UUID[:5], raw, buffers
	}
	if j.ClusterFile.Config == nil {
		return "", nil, 0
	}
	id, raw = j.ClusterFile.ID, j.ClusterFile.Config
	cluster, err := parsedCluster(raw)
	if err != nil {
		return id, raw, 0
	}
	if buffers, err = j.bufferShare(ctx, api, cluster); err != nil {
		k.say("error getting container record: %v", err)
		return id, raw, 0
	}
	return id, raw, buffers
}

// bufferShare is how many buffers this container's size entitles it to.
func (j *Job) bufferShare(ctx context.Context, api *arvados.Client, c *config.Cluster) (int, error) {
	var record struct {
		RuntimeConstraints struct {
			VCPUs int `json:"vcpus"`
		} `json:"runtime_constraints"`
	}
	err := api.Call(ctx, http.MethodGet, "containers/"+url.PathEscape(j.UUID), map[string]any{"select": []string{"runtime_constraints"}}, &record)
	return max(0, record.RuntimeConstraints.VCPUs*c.Containers.LocalKeepBlobBuffersPerVCPU), err
}

func parsedCluster(raw json.RawMessage) (*config.Cluster, error) {
	if raw == nil {
		return nil, nil
	}
	c, err := config.ParseCluster(raw)
	if err != nil {
		return nil, err
	}
	return &c, nil
}

// say is for stderr now, and for the log when there is one.
func (k *localKeepstore) say(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	fmt.Fprintln(k.stderr, line)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.said = append(k.said, line)
}

// report says in the log what has been said before there was one, and brings the
// server's output where the cluster's configuration wants it.
func (k *localKeepstore) report(log *joblog.Log) error {
	k.mu.Lock()
	said := k.said
	k.mu.Unlock()
	for _, line := range said {
		log.Printf("%s", line)
	}
	if k.server == nil {
		k.output.lines(log)
		return nil
	}
	k.server.SetLog(log.Printf)
	if k.logs == joblog.KeepstoreNone {
		log.Printf("using local keepstore process (pid %d) at %s", k.server.PID(), k.server.URL())
		k.output.sendTo(io.Discard)
		return nil
	}
	log.Printf("using local keepstore process (pid %d) at %s, writing logs to keepstore.txt in log collection", k.server.PID(), k.server.URL())
	options := joblog.StreamOptions{Redact: true}
	if k.logs == joblog.KeepstoreErrors {
		options.Filter = func(w io.Writer) io.WriteCloser { return &joblog.KeepstoreFilter{W: w} }
	}
	file, err := log.Stream("keepstore.txt", options)
	if err != nil {
		return err
	}
	k.output.sendTo(file)
	return nil
}

// processes are those whose memory is reported.
func (k *localKeepstore) processes() map[string]int {
	if k.server == nil {
		return nil
	}
	if pid := k.server.PID(); pid != 0 {
		return map[string]int{"keepstore": pid}
	}
	return nil
}

// maxEarlyOutput bounds what is kept of the server's output before there is a
// log, in bytes.
const maxEarlyOutput = 1 << 20

// keepstoreOutput is what the server writes: for stderr, and for the log as soon
// as that is there.
type keepstoreOutput struct {
	stderr io.Writer

	mu    sync.Mutex
	early bytes.Buffer
	to    io.Writer // nil: not known yet
}

func (o *keepstoreOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// Neither a terminal that has gone nor the log must stop the server.
	_, _ = o.stderr.Write(p)
	if o.to != nil {
		_, _ = o.to.Write(p)
	} else if o.early.Len() < maxEarlyOutput {
		o.early.Write(p)
	}
	return len(p), nil
}

func (o *keepstoreOutput) sendTo(w io.Writer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = o.early.WriteTo(w)
	o.to = w
}

// lines makes messages of what the server said before it ended.
func (o *keepstoreOutput) lines(log *joblog.Log) {
	w := log.Lines()
	o.sendTo(w)
	_ = w.Close()
	o.sendTo(io.Discard)
}
