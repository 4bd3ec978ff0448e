package oci_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"crunch-oci/oci"
)

// talk asks a web server in the container for something, and returns the first
// word of its answer.
func talk(t testing.TB, c *oci.Container, port int) (string, error) {
	t.Helper()
	conn, err := c.Dial(t.Context(), port)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_, err = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
	must(t, err)
	must(t, conn.(*net.TCPConn).CloseWrite())
	b, err := io.ReadAll(conn)
	must(t, err)
	word, _, _ := strings.Cut(string(b), "/")
	return word, nil
}

func TestDial(t *testing.T) {
	const address = "10.11.12.13"
	b := newBox(t, func(q *oci.Request) {
		q.Command = []string{"sh", "-c", `busybox httpd -p 127.0.0.1:1000 -h /work; busybox httpd -p '[::1]:1001' -h /work
			until ip addr show dev lo | grep -q ` + address + `; do busybox usleep 1000; done
			busybox httpd -p ` + address + `:1002 -h /work; sleep 600; true`}
	})
	addAddress(t, b.ctr.PID(), address)
	for _, port := range []int{1000, 1001, 1002} {
		waitFor(t, "the service", func() bool { _, err := talk(t, b.ctr, port); return err == nil })
		if got, err := talk(t, b.ctr, port); err != nil || got != "HTTP" {
			t.Errorf("port %d: %q, %v", port, got, err)
		}
	}
	// What listens on the host is not there.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	if _, err := talk(t, b.ctr, l.Addr().(*net.TCPAddr).Port); err == nil {
		t.Error("a service of the host was reached")
	}
	for _, port := range []int{0, -1, 65536} {
		if _, err := b.ctr.Dial(t.Context(), port); err == nil {
			t.Errorf("port %d was taken", port)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	if _, err := b.ctr.Dial(ctx, 1000); err == nil {
		t.Error("connected in spite of a done context")
	}
	if own := sameNetwork(t); !own {
		t.Error("this process is not in its own network any more")
	}
}

// sameNetwork tells whether every thread of this process is in the network that
// its first one is in.
func sameNetwork(t testing.TB) bool {
	t.Helper()
	runtime.GC()
	same := true
	// Threads that have been elsewhere end on their own, but not at once.
	waitFor(t, "threads to end", func() bool {
		first, err := os.Readlink("/proc/self/ns/net")
		must(t, err)
		tasks, err := os.ReadDir("/proc/self/task")
		must(t, err)
		same = true
		for _, task := range tasks {
			ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net")
			same = same && (err != nil || ns == first)
		}
		return same
	})
	return same
}

func TestDialRefuses(t *testing.T) {
	host := newBox(t, func(q *oci.Request) { q.Network, q.Hostname = oci.NetworkHost, "" })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if _, err := host.ctr.Dial(t.Context(), port); !errors.Is(err, oci.ErrHostNetwork) {
		t.Errorf("host network: %v", err)
	}
	ended, _ := run(t, newRequest(t, newID(), "true"), nil)
	var refused *oci.ExecError
	if _, err := ended.ctr.Dial(t.Context(), port); !errors.As(err, &refused) || refused.Text != "the container has ended" {
		t.Errorf("ended: %v", err)
	}
}

// addAddress gives the container's loopback interface another address, as a
// network would give it one of its own.
func addAddress(t testing.TB, pid int, address string) {
	t.Helper()
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(pid), "-n", "ip", "address", "add", address+"/32", "dev", "lo").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
