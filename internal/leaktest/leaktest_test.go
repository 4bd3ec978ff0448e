package leaktest

import (
	"strings"
	"testing"
	"time"

	"crunch-oci/internal/forkthread"
)

func TestMain(m *testing.M) { Main(m) }

// What ends late is waited for, what does not is found, and the thread that starts
// children is neither.
func TestFind(t *testing.T) {
	forkthread.Do(func() {})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go lingering(stop, stopped)
	if err := find(0); err == nil || !strings.Contains(err.Error(), "leaktest.lingering") {
		t.Errorf("with a goroutine left: %v", err)
	}
	time.AfterFunc(time.Second, func() { close(stop) })
	if err := find(time.Minute); err != nil {
		t.Error(err)
	}
	<-stopped
}

func lingering(stop, stopped chan struct{}) {
	<-stop
	close(stopped)
}
