package oci_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"crunch-oci/oci"
)

// findRunc finds runc, which "make deps" installs.
func findRunc(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("runc is not installed: apt-get install runc")
	}
	return path
}

// A bundle as written is one that another OCI runtime runs, to the same effect.
func TestRuncAcceptsTheBundle(t *testing.T) {
	runc := findRunc(t)
	outDir := t.TempDir()
	must(t, os.Chmod(outDir, 0o777))
	id := newID()
	req := newRequest(t, id, `id; env | grep -v SHLVL; pwd; hostname; cat /etc/hosts; grep -E 'Cap|Seccomp:|NoNewPrivs' /proc/self/status; touch /out/ok; ulimit -n; exit 7`)
	req.Image.User, req.Cwd = "alice", "/made/for/this"
	req.Env = map[string]string{"X": "y z"}
	req.Limits = oci.Limits{RAM: 256 << 20, NanoCPUs: 1e9, PIDs: 64}
	req.Mounts = []oci.Mount{{Source: outDir, Target: "/out"}}
	var err error
	req.Rlimits, err = oci.HostRlimits()
	must(t, err)

	ours, status := run(t, req, nil)
	if status.Code != 7 {
		t.Fatalf("ours: exit %v, stderr %q", status, ours.stderr)
	}
	ours.delete()
	must(t, os.Remove(filepath.Join(outDir, "ok")))

	cmd := exec.Command(runc, "--root", t.TempDir(), "run", "--bundle", ours.bundle, id)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if cmd.ProcessState.ExitCode() != 7 {
		t.Fatalf("runc: %v, stderr %q", err, &stderr)
	}
	if stdout.String() != ours.stdout.String() {
		t.Errorf("runc's container printed:\n%s\nours:\n%s", &stdout, ours.stdout)
	}
	if _, err := os.Stat(filepath.Join(outDir, "ok")); err != nil {
		t.Error(err)
	}
	for _, dir := range testCgroupDirs(t) {
		_ = os.Remove(dir) // runc leaves the parent behind
	}
}

// The whole life of a container running true, beside "runc run" of the same
// bundle, taking turns. The figures are medians; -benchtime sets the number of
// turns.
//
//	go test -tags seccomp,netgo,osusergo -run xxx -bench Life -benchtime 50x ./oci
func BenchmarkLife(b *testing.B) {
	runc := findRunc(b)
	req := newRequest(b, newID(), "")
	req.Command = []string{"true"}
	req.Limits = oci.Limits{RAM: 256 << 20, NanoCPUs: 1e9}
	spec, err := oci.NewSpec(req)
	must(b, err)
	bundle, state, runcState := b.TempDir(), b.TempDir(), b.TempDir()
	must(b, oci.WriteBundle(bundle, spec))
	id := filepath.Base(req.CgroupsPath)
	r := &oci.Runtime{StateDir: state}
	ctx := context.Background()
	var create, start, wait, remove, whole, peer []time.Duration
	lap := func(d *[]time.Duration, since time.Time) time.Time {
		now := time.Now()
		*d = append(*d, now.Sub(since))
		return now
	}
	for b.Loop() {
		begin := time.Now()
		ctr, err := r.Create(ctx, id, bundle, oci.Stdio{})
		must(b, err)
		now := lap(&create, begin)
		must(b, ctr.Start(b.Context()))
		now = lap(&start, now)
		if status, err := ctr.Wait(ctx); err != nil || status.Code != 0 {
			b.Fatalf("exit %v, %v", status, err)
		}
		now = lap(&wait, now)
		must(b, ctr.Delete(ctx))
		lap(&remove, now)
		now = lap(&whole, begin)
		if out, err := exec.Command(runc, "--root", runcState, "run", "--bundle", bundle, id).CombinedOutput(); err != nil {
			b.Fatalf("runc: %v: %s", err, out)
		}
		lap(&peer, now)
	}
	for _, dir := range testCgroupDirs(b) {
		_ = os.Remove(dir) // runc leaves the parent behind
	}
	for _, m := range []struct {
		name string
		d    []time.Duration
	}{{"create", create}, {"start", start}, {"wait", wait}, {"delete", remove}, {"whole", whole}, {"runc", peer}} {
		slices.Sort(m.d)
		b.ReportMetric(float64(m.d[len(m.d)/2].Microseconds())/1000, m.name+"-ms")
	}
	b.ReportMetric(float64(median(whole))/float64(median(peer)), "ratio")
	b.ReportMetric(0, "ns/op")
	b.Logf("p99: ours %v, runc %v; fastest: ours %v, runc %v", whole[len(whole)*99/100], peer[len(peer)*99/100], whole[0], peer[0])
}

func median(sorted []time.Duration) time.Duration { return sorted[len(sorted)/2] }
