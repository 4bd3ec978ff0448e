package keepmount

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// waiter waits for a mount.
type waiter interface {
	// wait returns nil when the mount is there, io.EOF when the server is known
	// not to make it.
	wait(ctx context.Context) error
	// close ends a wait.
	close()
}

// lineWaiter waits for the line that this program writes as a server.
type lineWaiter struct{ r *os.File }

// newLineWaiter also returns the end for the server; the caller closes its copy.
func newLineWaiter() (waiter, *os.File, error) {
	r, theirs, err := os.Pipe()
	return &lineWaiter{r}, theirs, err
}

func (w *lineWaiter) wait(context.Context) error {
	_, err := bufio.NewReader(w.r).ReadString('\n')
	return err
}

func (w *lineWaiter) close() { _ = w.r.Close() }

// mountWaiter looks at the table of mounts, proc_pid_mountinfo(5). It asks the
// mount itself nothing: a server that does not answer would hang the supervisor.
type mountWaiter struct{ path string }

// lookEvery is the time between two looks, the reference's (spec:
// mounts-and-output section 8).
const lookEvery = 100 * time.Millisecond

// newMountWaiter must be called while nothing is mounted.
func newMountWaiter(mountpoint string) (waiter, error) {
	path, err := filepath.EvalSymlinks(mountpoint)
	return &mountWaiter{path}, err
}

func (w *mountWaiter) wait(ctx context.Context) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || isMounted(string(table), w.path) {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (w *mountWaiter) close() {}

// unescape undoes what the kernel does to blanks and the like in paths.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func isMounted(table, path string) bool {
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 4 && unescape.Replace(fields[4]) == path {
			return true
		}
	}
	return false
}
