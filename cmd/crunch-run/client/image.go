package client

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"

	"crunch-oci/cmd/crunch-run/commandline"
	"crunch-oci/cmd/crunch-run/transfer"
)

var imagePut = &command{
	name: "image put",
	usage: `Usage: crunch-run image put [--name REPO:TAG]... [--project UUID] [--force] [--json] FILE.tar

Stores an image tarball (docker save, podman save, skopeo copy, ...) on the cluster,
where containers find it by its names, its id or its portable data hash. An image
that the cluster has already is not stored again; names it lacks are added.

  --name REPO:TAG  name to give it (repeatable; default: those in the tarball)
  --project UUID   project to put it into (default: your own)
  --force          store it even if it is there
  --json           print the result as JSON

Examples:
  docker save -o tools.tar example/tools:1.0 && crunch-run image put tools.tar
  crunch-run image put --name lab/align:2.3 align.tar
`,
	flags: func(fs *flag.FlagSet, c *invocation) {
		fs.Var(&c.names, "name", "")
		fs.StringVar(&c.project, "project", "", "")
		fs.BoolVar(&c.force, "force", false, "")
	},
	run: runImagePut,
}

func runImagePut(ctx context.Context, c *invocation) (int, error) {
	if len(c.args) != 1 {
		return 0, commandline.Misuse("one image tarball is needed, not %d", len(c.args))
	}
	for _, n := range c.names {
		if n == "" || strings.ContainsAny(n, " \t\n@") {
			return 0, commandline.Misuse("--name %q: must be REPOSITORY:TAG", n)
		}
	}
	img, err := transfer.Examine(ctx, c.args[0], c.TempDir)
	if err != nil {
		return 0, err
	}
	names := []string(c.names)
	if names == nil {
		names = img.Names
	}
	return 0, c.connected(ctx, func(s *transfer.Session) error {
		bar := transfer.NewBar(c.Stderr, "storing image", img.Size)
		stored, err := s.PutImage(ctx, img, transfer.ImageOptions{Names: names, Project: c.project, Force: c.force}, bar)
		bar.End()
		if err != nil {
			return err
		}
		full := []string{}
		for _, n := range names {
			full = append(full, transfer.FullName(n))
		}
		return c.print(map[string]any{"id": img.ID, "names": full, "collection_uuid": stored.UUID, "portable_data_hash": stored.PortableDataHash},
			fmt.Sprintf("%s %s %s\n", stored.UUID, stored.PortableDataHash, strings.Join(full, " ")))
	})
}

var imageList = &command{
	name: "image list",
	usage: `Usage: crunch-run image list [--json] [TEXT]

Lists the images on the cluster that you can read, the newest first. With TEXT only
those whose name or id contains it.

Examples:
  crunch-run image list
  crunch-run image list --json debian
`,
	run: runImageList,
}

func runImageList(ctx context.Context, c *invocation) (int, error) {
	if len(c.args) > 1 {
		return 0, commandline.Misuse("one text to look for at most, not %d", len(c.args))
	}
	return 0, c.connected(ctx, func(s *transfer.Session) error {
		all, err := s.Images(ctx)
		if err != nil {
			return err
		}
		found := []transfer.StoredImage{}
		var text strings.Builder
		tab := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tab, "NAME\tIMAGE ID\tCOLLECTION\tCREATED\tSIZE")
		for _, img := range all {
			if len(c.args) == 1 && !strings.Contains(img.Name, c.args[0]) && !strings.Contains(img.ID, c.args[0]) {
				continue
			}
			found = append(found, img)
			name, created := img.Name, "-"
			if name == "" {
				name = "-"
			}
			if !img.Created.IsZero() {
				created = img.Created.UTC().Format("2006-01-02")
			}
			id := strings.TrimPrefix(img.ID, "sha256:")
			fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\n", word(name), word(id[:min(len(id), 12)]), img.UUID, created, units.BytesSize(float64(img.SizeOnKeep)))
		}
		_ = tab.Flush() // into memory
		return c.print(found, text.String())
	})
}
