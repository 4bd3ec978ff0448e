package nodecheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// answerTime is how long a driver or a server may take to answer: of the default
// patience a second, which leaves the whole its two. A driver that first has to
// start its GPUs takes longer than that.
func (c *checker) answerTime() time.Duration { return c.Patience * 5 / 8 }

// gpus asks for the GPUs as the start of a container does.
func gpus(c *checker) {
	switch {
	case c.SiteErr == nil && c.Site.GPU == "off":
		c.note("off (gpu: off)")
		return
	case c.GPUs == nil:
		c.note("not looked for")
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.answerTime())
	defer cancel()
	kinds, err := c.GPUs(ctx)
	for _, k := range kinds {
		c.ok("%s", k)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		c.warn("see whether nvidia-smi answers; in persistence mode (nvidia-persistenced) it does at once (or wait longer: --timeout)", "the driver has not answered within %s", c.answerTime())
	case err != nil:
		c.warn("containers with GPUs are put back into the queue until this is repaired; see doc/gpu.md", "%v", err)
	case len(kinds) == 0:
		c.note("none")
	}
}

// programYear is a year that has come when this was written: no right clock is
// before it.
const programYear = 2026

// clock finds clocks that are plainly wrong: certificates and the signatures of
// blocks are believed by it.
func clock(c *checker) {
	now := time.Now()
	if now.Year() < programYear {
		c.fail("set the clock, and run a time service such as chrony", "it is %s: certificates and signatures will be refused", now.UTC().Format(time.RFC3339))
		return
	}
	if c.ClockOffset != nil && !clockOfCluster(c, now) {
		return
	}
	var x unix.Timex
	state, err := unix.Adjtimex(&x)
	switch {
	case err != nil:
		c.note("%s; whether it is kept right is not known: %v", now.UTC().Format(time.RFC3339), err)
	case state == unix.TIME_ERROR || x.Status&unix.STA_UNSYNC != 0:
		c.warn("run a time service such as chrony", "%s, kept right by nobody", now.UTC().Format(time.RFC3339))
	default:
		c.ok("%s, kept right", now.UTC().Format(time.RFC3339))
	}
}

// Differences between the node's clock and the cluster's that users see in time
// stamps, and with which certificates and signatures are at stake.
const (
	slightOffset = 10 * time.Second
	wrongOffset  = 5 * time.Minute
)

// clockOfCluster compares the clock with the cluster's, and tells whether there is
// nothing wrong with it.
func clockOfCluster(c *checker, now time.Time) bool {
	ctx, cancel := context.WithTimeout(c.ctx, c.answerTime())
	defer cancel()
	offset, err := c.ClockOffset(ctx)
	if err != nil {
		c.warn("see whether ARVADOS_API_HOST can be reached from this node", "the clock is not compared with the cluster's: %v", err)
		return true
	}
	direction := "ahead of"
	if offset < 0 {
		direction = "behind"
	}
	size := offset.Abs().Round(time.Second)
	text := fmt.Sprintf("%s is %s %s the cluster's clock", now.UTC().Format(time.RFC3339), size, direction)
	switch {
	case size >= wrongOffset:
		c.fail("set the clock, and run a time service such as chrony", "%s: certificates and signatures may be refused", text)
	case size >= slightOffset:
		c.warn("run a time service such as chrony", "%s", text)
	default:
		return true
	}
	return false
}

// settings says whether they can be used; the list of them is the report's.
func settings(c *checker) {
	if c.SiteErr != nil {
		c.fail("correct them", "%v", c.SiteErr)
		return
	}
	set := 0
	for _, s := range c.Site.Describe() {
		if s.Origin != "default" {
			set++
		}
	}
	c.ok("%s other than the default", plural(set, "value"))
	if len(c.Site.KeepMount) > 0 {
		if _, err := os.Stat(c.Site.KeepMount[0]); err != nil && filepath.IsAbs(c.Site.KeepMount[0]) {
			c.fail("install the program, or remove the setting", "keep-mount-command: %v", err)
		}
	}
}
