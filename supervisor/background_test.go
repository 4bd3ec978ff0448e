package supervisor

import (
	"os"
	"testing"
)

// A server that has ended, however, is not reported: its number may be that of
// another process.
func TestOwnProcesses(t *testing.T) {
	m := &fakeMount{exited: make(chan struct{})}
	r := &run{Supervisor: new(Supervisor)}
	if p := r.ownProcesses(); len(p) != 1 || p["crunch-run"] != os.Getpid() {
		t.Errorf("without a mount: %v", p)
	}
	var server Mount = m
	r.pids.mount.Store(&server)
	if p := r.ownProcesses(); p["arv-mount"] != m.PID() {
		t.Errorf("with a mount: %v", p)
	}
	close(m.exited)
	if p := r.ownProcesses(); p["arv-mount"] != 0 {
		t.Errorf("after its end: %v", p)
	}
}
