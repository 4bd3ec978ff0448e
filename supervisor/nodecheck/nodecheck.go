package nodecheck

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"crunch-oci/oci"
	"crunch-oci/supervisor/config"
)

// Options say what is checked.
type Options struct {
	// Version is this program's.
	Version string
	// Site are the settings in force; SiteErr is why there are none.
	Site    config.Site
	SiteErr error
	// TempDir is where temporary files of containers go.
	TempDir string
	// Patience is how long all of it may take; what has not ended by then has
	// failed. 0 means DefaultPatience.
	Patience time.Duration
	// NewDir makes a private directory below parent, to be removed by the
	// function returned, and if this process is killed by somebody else.
	NewDir func(parent string) (dir string, remove func() error, err error)
	// Trial runs the program /true of a root directory in a container with every
	// limit, and returns which limits are not enforced.
	Trial func(ctx context.Context, rootfs string) (warnings []string, err error)
	// AppArmor is the node's; SELinuxDir, if not empty, is its selinuxfs.
	AppArmor   oci.AppArmor
	SELinuxDir string
	// GPUs describes the GPUs that containers can get, a line for each kind; the
	// error says what is wrong with others. Nil: they are not looked for.
	GPUs func(ctx context.Context) (kinds []string, err error)
	// ClockOffset is how far the node's clock is ahead of the cluster's. Nil: no
	// cluster is known.
	ClockOffset func(ctx context.Context) (time.Duration, error)
}

// DefaultPatience keeps the whole below two seconds, on a node whose disks
// answer.
const DefaultPatience = 1600 * time.Millisecond

// Level is how bad a finding is.
type Level string

// The levels, from good to bad. Only a failure makes a node unfit.
const (
	OK      Level = "ok"
	Note    Level = "note"
	Warning Level = "warning"
	Failure Level = "failure"
)

// Finding is one line of the table.
type Finding struct {
	Area  string `json:"area"`
	Level Level  `json:"level"`
	// Text is what was found, Advice what the operator can do about it.
	Text   string `json:"text"`
	Advice string `json:"advice,omitempty"`
}

// check looks at one area. Its findings are sent as they come, so that those
// before one that hangs are not lost.
type check struct {
	area string
	look func(c *checker)
}

// checker is one check at work.
type checker struct {
	Options
	ctx  context.Context
	area string

	mu    *sync.Mutex
	found *[]Finding
}

func (c *checker) add(level Level, advice, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*c.found = append(*c.found, Finding{c.area, level, fmt.Sprintf(format, args...), advice})
}

func (c *checker) ok(format string, args ...any)   { c.add(OK, "", format, args...) }
func (c *checker) note(format string, args ...any) { c.add(Note, "", format, args...) }
func (c *checker) warn(advice, format string, args ...any) {
	c.add(Warning, advice, format, args...)
}
func (c *checker) fail(advice, format string, args ...any) {
	c.add(Failure, advice, format, args...)
}

// checks in the order of the table.
var checks = []check{
	{"privileges", privileges},
	{"kernel", kernel},
	{"cgroups", controlGroups},
	{"image store", imageStore},
	{"temporary files", temporaryFiles},
	{"state", stateDirs},
	{"container", trialContainer},
	{"FUSE", fuse},
	{"network", networks},
	{"GPU", gpus},
	{"clock", clock},
	{"settings", settings},
}

// Run checks the node. It returns a moment after Patience at the latest, and what
// still hangs then is left behind: the caller should end.
func Run(ctx context.Context, o Options) *Report {
	began := time.Now()
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	if os.Geteuid() != 0 {
		return Refuse(o.Version, Finding{"privileges", Failure, "only root can check a node, as only root can run containers", "run: sudo crunch-run check"})
	}
	r := &Report{Version: o.Version}
	r.Host, _ = os.Hostname()
	end, cancelEnd := context.WithTimeout(ctx, o.Patience+cleaningTime)
	defer cancelEnd()
	ctx, cancel := context.WithTimeout(end, o.Patience)
	defer cancel()
	type result struct {
		mu    sync.Mutex
		found []Finding
		done  chan struct{}
	}
	results := make([]*result, len(checks))
	for i, ch := range checks {
		res := &result{done: make(chan struct{})}
		results[i] = res
		c := &checker{Options: o, ctx: ctx, area: ch.area, mu: &res.mu, found: &res.found}
		go func() {
			defer close(res.done)
			ch.look(c)
		}()
	}
	for i, res := range results {
		late := false
		select {
		case <-res.done:
		case <-end.Done():
			select {
			case <-res.done: // long ago
			default:
				late = true
			}
		}
		res.mu.Lock()
		r.Findings = append(r.Findings, res.found...)
		res.mu.Unlock()
		if late {
			r.Hung = true
			r.Findings = append(r.Findings, Finding{checks[i].area, Failure, fmt.Sprintf("no answer within %v", o.Patience), "look for a disk or network file system that hangs, or an overloaded node (--timeout waits longer)"})
		}
	}
	for _, s := range o.Site.Describe() {
		r.Settings = append(r.Settings, Setting{s.Name, s.Value, s.Origin, s.Meaning})
	}
	r.Healthy = !r.has(Failure)
	r.Milliseconds = time.Since(began).Milliseconds()
	return r
}

// Refuse is the report of a node that cannot even be checked.
func Refuse(version string, f Finding) *Report {
	r := &Report{Version: version, Findings: []Finding{f}}
	r.Host, _ = os.Hostname()
	return r
}

// cleaningTime is what a check that is told to stop may take to remove what it
// has made.
const cleaningTime = 150 * time.Millisecond
