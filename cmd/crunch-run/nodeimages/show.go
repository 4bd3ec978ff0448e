package nodeimages

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"crunch-oci/cmd/crunch-run/commandline"
	"crunch-oci/imagestore"
)

var list = &command{
	name: "list",
	usage: `Usage: crunch-run image list [--node] [--json] [TEXT]

Lists the images that are unpacked on this node, the most recently used first. With
TEXT only those whose name or id contains it. Where ARVADOS_API_HOST is set, --node
is needed: without it the images on the cluster are listed.

Examples:
  crunch-run image list --node
  crunch-run image list --node --json debian
`,
	run: runList,
}

func runList(ctx context.Context, c *invocation, s *imagestore.Store) (int, error) {
	if len(c.args) > 1 {
		return 0, commandline.Misuse("one text to look for at most, not %d", len(c.args))
	}
	contents, err := s.Contents(ctx)
	if err != nil {
		return 0, err
	}
	shown := []imagestore.ImageInfo{}
	var text strings.Builder
	tab := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tab, "NAME\tIMAGE ID\tSIZE\tFILES\tLAST USED\tSTATE")
	for _, img := range contents.Images {
		names := strings.Join(img.Tags, " ")
		if len(c.args) == 1 && !strings.Contains(names, c.args[0]) && !strings.Contains(img.ID.String(), c.args[0]) {
			continue
		}
		shown = append(shown, img)
		if names == "" {
			names = "-"
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%d\t%s ago\t%s\n", names, img.ID.Encoded()[:12], size(img.Size.Bytes), img.Size.Inodes, ago(img.LastUsed), state(img))
	}
	_ = tab.Flush() // into memory
	fmt.Fprintf(&text, "\n%s in all, %s free; the budget is %s.\n", contents.Size, size(contents.Free.Bytes), contents.Budget)
	if len(contents.Foreign) > 0 {
		fmt.Fprintf(&text, "Not the store's own, and left alone: %q\n", contents.Foreign)
	}
	contents.Images = shown
	return 0, c.print(contents, text.String())
}

func size(n int64) string { return units.BytesSize(float64(n)) }

func ago(t time.Time) string { return strings.ToLower(units.HumanDuration(time.Since(t))) }

func state(img imagestore.ImageInfo) string {
	switch {
	case !img.Complete:
		return "to be unpacked again"
	case img.InUse:
		return "in use"
	}
	return "unused"
}

var inspect = &command{
	name: "inspect",
	usage: `Usage: crunch-run image inspect IMAGE...

Prints what is known about images that are unpacked on this node, as JSON: where they
came from, their configuration, the directories of their layers. IMAGE is a name, an
id or the beginning of one.

Examples:
  crunch-run image inspect debian:12
  crunch-run image inspect 7eb0c1ad | jq .[0].config.config.Env
`,
	run: runInspect,
}

func runInspect(ctx context.Context, c *invocation, s *imagestore.Store) (int, error) {
	if len(c.args) == 0 {
		return 0, commandline.Misuse("which image?")
	}
	contents, err := s.Contents(ctx)
	if err != nil {
		return 0, err
	}
	found, err := choose(contents.Images, c.args)
	if err != nil {
		return 0, err
	}
	type full struct {
		imagestore.ImageInfo
		Config json.RawMessage `json:"config"`
	}
	var out []full
	for _, img := range found {
		out = append(out, full{img, img.RawConfig})
	}
	return 0, c.printJSON(out)
}

var verify = &command{
	name: "verify",
	usage: `Usage: crunch-run image verify [--remove] [--json] [IMAGE...]

Reads every file of the images on this node (default: all of them) and looks for
changes since they were unpacked, missing and added files, and unreadable blocks.
Exits with 1 if something is damaged.

  --remove  remove damaged images that are not in use: they are unpacked again
            when they are next needed
  --json    print the result as JSON
`,
	flags: func(fs *flag.FlagSet, c *invocation) { fs.BoolVar(&c.remove, "remove", false, "") },
	run:   runVerify,
}

// verdict is what was found about one image.
type verdict struct {
	ID      string              `json:"id"`
	Tags    []string            `json:"tags"`
	Damage  []imagestore.Damage `json:"damage"`
	Removed bool                `json:"removed"`
}

func runVerify(ctx context.Context, c *invocation, s *imagestore.Store) (int, error) {
	contents, err := s.Contents(ctx)
	if err != nil {
		return 0, err
	}
	images := contents.Images
	if len(c.args) > 0 {
		if images, err = choose(images, c.args); err != nil {
			return 0, err
		}
	}
	looked := make(map[string][]imagestore.Damage)
	verdicts := []verdict{}
	status := 0
	var text strings.Builder
	for _, img := range images {
		v := verdict{ID: img.ID.String(), Tags: img.Tags, Damage: []imagestore.Damage{}}
		for _, layer := range img.LayerNames() {
			damage, known := looked[layer]
			if !known {
				if damage, err = s.Verify(ctx, layer); err != nil {
					return 0, err
				}
				looked[layer] = damage
			}
			v.Damage = append(v.Damage, damage...)
		}
		name := strings.Join(append([]string{img.ID.Encoded()[:12]}, img.Tags...), " ")
		if len(v.Damage) == 0 {
			fmt.Fprintf(&text, "%s: good\n", name)
		} else {
			status = exitFailure
			fmt.Fprintf(&text, "%s: damaged\n", name)
			for _, d := range v.Damage {
				fmt.Fprintf(&text, "  %s\n", d)
			}
			if c.remove {
				if v.Removed, err = removeDamaged(ctx, s, img, v.Damage); err != nil {
					return 0, err
				}
				if v.Removed {
					fmt.Fprintln(&text, "  removed")
				} else {
					fmt.Fprintln(&text, "  in use, not removed")
				}
			}
		}
		verdicts = append(verdicts, v)
	}
	if len(verdicts) == 0 {
		text.WriteString("no images in the store\n")
	}
	return status, c.print(verdicts, text.String())
}

// removeDamaged removes the damaged layers as well where other images have them:
// those are unpacked again too.
func removeDamaged(ctx context.Context, s *imagestore.Store, img imagestore.ImageInfo, damage []imagestore.Damage) (bool, error) {
	removed := true
	for _, d := range damage {
		ok, err := s.Discard(d.Layer)
		if err != nil {
			return false, err
		}
		removed = removed && ok
	}
	if !removed {
		return false, nil
	}
	_, err := s.Prune(ctx, imagestore.PruneOptions{All: true, Only: []string{img.Name}})
	return err == nil, err
}
