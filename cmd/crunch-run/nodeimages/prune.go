package nodeimages

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"crunch-oci/cmd/crunch-run/commandline"
	"crunch-oci/imagestore"
	"crunch-oci/supervisor/config"
)

var prune = &command{
	name: "prune",
	usage: `Usage: crunch-run image prune [--all | --unused-for DURATION] [--to SIZE] [--dry-run] [--json] [IMAGE...]

Removes images from this node, the least recently used first, and what belongs to no
image. Without arguments: until the store is within its budget (store-budget,
store-inodes), which happens by itself after each new image. Images in use always stay;
a removed one is unpacked again when it is needed.

  --all                  remove every image that is not in use
  --unused-for DURATION  also those not used for so long, such as 36h or 30d
  --to SIZE              make the store no larger than this, such as 20GiB
  --dry-run              remove nothing, tell what would be removed
  --json                 print the result as JSON

Examples:
  crunch-run image prune --unused-for 30d
  crunch-run image prune example/tools:1.0
`,
	flags: func(fs *flag.FlagSet, c *invocation) {
		fs.BoolVar(&c.prune.all, "all", false, "")
		fs.StringVar(&c.prune.unusedFor, "unused-for", "", "")
		fs.StringVar(&c.prune.to, "to", "", "")
		fs.BoolVar(&c.prune.dryRun, "dry-run", false, "")
	},
	run: runPrune,
}

type pruneFlags struct {
	all, dryRun   bool
	unusedFor, to string
}

func (f pruneFlags) options(budget imagestore.Amount) (imagestore.PruneOptions, error) {
	o := imagestore.PruneOptions{To: budget, All: f.all, DryRun: f.dryRun}
	if f.all && f.unusedFor != "" {
		return o, commandline.Misuse("--all and --unused-for: one of them only")
	}
	if f.unusedFor != "" {
		d, err := parseAge(f.unusedFor)
		if err != nil {
			return o, commandline.Misuse("--unused-for: %v", err)
		}
		o.UnusedFor = d
	}
	if f.to != "" {
		n, err := config.ParseSize(f.to)
		if err != nil || n <= 0 {
			return o, commandline.Misuse("--to: %q is not a size such as 20GiB", f.to)
		}
		o.To = imagestore.Amount{Bytes: n}
	}
	return o, nil
}

// parseAge is time.ParseDuration with days.
func parseAge(text string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a duration such as 90m, 36h or 30d", text)
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(text, "d"); ok {
		d, err = time.ParseDuration(days + "h")
		if d > (1<<63-1)/24 {
			return 0, bad
		}
		d *= 24
	} else {
		d, err = time.ParseDuration(text)
	}
	if err != nil || d <= 0 {
		return 0, bad
	}
	return d, nil
}

func runPrune(ctx context.Context, c *invocation, s *imagestore.Store) (int, error) {
	contents, err := s.Contents(ctx)
	if err != nil {
		return 0, err
	}
	o, err := c.prune.options(contents.Budget)
	if err != nil {
		return 0, err
	}
	if len(c.args) > 0 {
		found, err := choose(contents.Images, c.args)
		if err != nil {
			return 0, err
		}
		o.All = true
		for _, img := range found {
			if img.InUse {
				return 0, fmt.Errorf("image %s is in use", img.ID)
			}
			o.Only = append(o.Only, img.Name)
		}
	}
	p, err := s.Prune(ctx, o)
	if err != nil {
		return 0, err
	}
	if p.Images == nil {
		p.Images = []imagestore.ImageInfo{}
	}
	verb := "removed"
	if o.DryRun {
		verb = "would remove"
	}
	var text strings.Builder
	for _, img := range p.Images {
		fmt.Fprintf(&text, "%s %s %s\n", verb, img.ID.Encoded()[:12], strings.Join(img.Tags, " "))
	}
	fmt.Fprintf(&text, "%s %d images, %d layers, %s; %s left\n", verb, len(p.Images), p.Layers, size(p.Freed.Bytes), p.Left)
	if p.Over && len(c.args) == 0 {
		fmt.Fprintf(&text, "still over the limit of %s, because of images in use\n", o.To)
	}
	return 0, c.print(p, text.String())
}
