package main_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// On a spot instance of the cloud: notices reach the record, prices the cost,
// and no child sees the gateway's secret, whatever it was started for.
func TestCloudInstance(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
			_, _ = w.Write([]byte("imds-token"))
		case r.Header.Get("X-aws-ec2-metadata-token") != "imds-token":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_, _ = w.Write([]byte(`{"action":"terminate","time":"2017-09-18T08:22:00Z"}`))
		}
	}))
	t.Cleanup(metadata.Close)
	const secret = "d0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeef"
	uuid := c.submit(t, c.storeTools(t), sh("head -c 1 /in/a.txt; env; "+untilTold+"true"), withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")})))
	env := map[string]string{
		"InstanceType": `{"ProviderType":"m5.large","VCPUs":2,"RAM":8589934592,"Price":0.1}`, "GatewayAuthSecret": secret, "GatewayAddress": "127.0.0.1:0",
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.URL,
	}
	for _, kv := range c.supervisorEnv() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	message, err := json.Marshal(map[string]any{"Env": env, "EC2SpotCheck": true})
	if err != nil {
		t.Fatal(err)
	}
	p := n.start(t, run{args: []string{"-stdin-config", uuid}, stdin: strings.NewReader(string(message))})
	insideContainer(t, n)
	for _, f := range n.processes() {
		environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(f.pid), "environ"))
		if err == nil && f.pid != p.cmd.Process.Pid && strings.Contains(string(environ), secret) {
			t.Errorf("the gateway's secret is in the environment of %v", f)
		}
	}

	began := c.container(t, uuid).StartedAt
	prices := []map[string]any{{"StartTime": began.Add(-time.Hour).Format(time.RFC3339Nano), "Price": 3600}}
	text, err := json.Marshal(prices)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.locks(), "crunch-run-prices.json")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGUSR2)
	waitFor(t, "the cost", func() bool { return c.container(t, uuid).Cost > 0 })
	before := c.container(t, uuid).Log
	p.signal(t, syscall.SIGUSR1)
	waitFor(t, "a newer log", func() bool { return c.container(t, uuid).Log != before })
	const notice = "Cloud provider scheduled instance terminate at 2017-09-18T08:22:00Z"
	waitFor(t, "the notice", func() bool { return c.container(t, uuid).RuntimeStatus["preemptionNotice"] == notice })
	if err := os.Remove(path); err != nil { // the dispatcher's, not ours to clean
		t.Error(err)
	}
	release(t, n)
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if seconds := record.FinishedAt.Sub(*record.StartedAt).Seconds(); record.Cost < seconds || record.Cost > seconds+patience.Seconds() {
		t.Errorf("cost %v of %v seconds at 1 a second", record.Cost, seconds)
	}
	log := c.log(t, record, "crunch-run.txt")
	mustSayInOrder(t, log, "Checking for spot instance interruptions every 5s using instance metadata at "+metadata.URL, notice)
	if !strings.Contains(log, "Instance price changed to 3.60e+03 at ") {
		t.Errorf("no word about the price:\n%s", log)
	}
	if out := c.log(t, record, "stdout.txt") + log; strings.Contains(out, secret) || strings.Contains(out, "imds-token") {
		t.Errorf("a secret is in the log:\n%s", out)
	}
}
