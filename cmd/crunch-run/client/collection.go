package client

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/commandline"
	"crunch-oci/cmd/crunch-run/transfer"
	"crunch-oci/keep"
)

var collectionPut = &command{
	name: "collection put",
	usage: `Usage: crunch-run collection put [--name TEXT] [--project UUID] [--json] PATH...

Stores files and directories as one new collection. A directory appears under its
name, or, if PATH ends in a slash, with its content only. Links are followed. Prints
UUID and portable data hash.

Examples:
  crunch-run collection put --name "run 42" fastq/
  crunch-run collection put a.txt b.txt results
`,
	flags: func(fs *flag.FlagSet, c *invocation) {
		fs.StringVar(&c.name1, "name", "", "")
		fs.StringVar(&c.project, "project", "", "")
	},
	run: runCollectionPut,
}

func runCollectionPut(ctx context.Context, c *invocation) (int, error) {
	if len(c.args) == 0 {
		return 0, commandline.Misuse("what shall be stored? Name files or directories")
	}
	var total int64
	for _, p := range c.args {
		fi, err := os.Stat(p)
		if err != nil {
			return 0, err
		}
		if fi.IsDir() {
			total += transfer.TreeSize(p)
		} else {
			total += fi.Size()
		}
	}
	attrs := map[string]any{}
	for attr, v := range map[string]string{"name": c.name1, "owner_uuid": c.project} {
		if v != "" {
			attrs[attr] = v
		}
	}
	return 0, c.connected(ctx, func(s *transfer.Session) error {
		bar := transfer.NewBar(c.Stderr, "storing", total)
		coll, err := s.PutTree(ctx, c.args, attrs, bar)
		bar.End()
		if err != nil {
			return err
		}
		return c.print(map[string]any{"uuid": coll.UUID, "portable_data_hash": coll.PortableDataHash, "name": coll.Name},
			coll.UUID+" "+coll.PortableDataHash+"\n")
	})
}

var collectionGet = &command{
	name: "collection get",
	usage: `Usage: crunch-run collection get [--json] COLLECTION[/PATH] DEST

Copies a collection (UUID or portable data hash), a directory of it or a file to
DEST: a new or empty directory for a directory; a new file, an existing directory, or
- (standard output) for a file.

Examples:
  crunch-run collection get zzzzz-4zz18-0123456789abcde ./result
  crunch-run collection get zzzzz-4zz18-0123456789abcde/log/stderr.txt -
`,
	run: runCollectionGet,
}

func runCollectionGet(ctx context.Context, c *invocation) (int, error) {
	if len(c.args) != 2 {
		return 0, commandline.Misuse("a collection and a destination are needed")
	}
	id, sub, err := splitCollection(c.args[0])
	if err != nil {
		return 0, err
	}
	dest := c.args[1]
	return 0, c.connected(ctx, func(s *transfer.Session) error {
		coll, err := s.Open(ctx, id)
		if err != nil {
			return err
		}
		defer coll.Close()
		fi, err := coll.Stat(sub)
		if err != nil {
			return fmt.Errorf("collection %s: %w", id, err)
		}
		if !fi.IsDir() {
			return c.getFile(ctx, coll, sub, dest)
		}
		if dest == "-" {
			return commandline.Misuse("%s is a directory: it needs one to be copied to", c.args[0])
		}
		entries, err := os.ReadDir(dest)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("%s is not empty; nothing in it would be safe", dest)
		}
		if err := s.Export(ctx, id, sub, dest); err != nil {
			return err
		}
		return c.print(map[string]any{"path": dest}, "")
	})
}

func (c *invocation) getFile(ctx context.Context, coll *keep.Collection, name, dest string) (err error) {
	in, err := coll.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	if dest == "-" {
		_, err = io.Copy(c.Stdout, in.WithContext(ctx))
		return err
	}
	if fi, err := os.Stat(dest); err == nil && fi.IsDir() {
		dest = filepath.Join(dest, path.Base(name))
	}
	out, err := os.OpenFile(dest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in.WithContext(ctx))
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, os.Remove(dest)) // half a file is worse than none
	}
	return c.print(map[string]any{"path": dest}, "")
}

var collectionList = &command{
	name: "collection ls",
	usage: `Usage: crunch-run collection ls [--json] COLLECTION[/PATH]

Lists the files of a collection (UUID or portable data hash), or of a directory of
it, with their sizes in bytes.

Example:
  crunch-run collection ls zzzzz-4zz18-0123456789abcde
`,
	run: runCollectionList,
}

func runCollectionList(ctx context.Context, c *invocation) (int, error) {
	if len(c.args) != 1 {
		return 0, commandline.Misuse("one collection is needed")
	}
	id, sub, err := splitCollection(c.args[0])
	if err != nil {
		return 0, err
	}
	return 0, c.connected(ctx, func(s *transfer.Session) error {
		coll, err := s.Open(ctx, id)
		if err != nil {
			return err
		}
		defer coll.Close()
		type file struct {
			Name string `json:"name"`
			Size int64  `json:"size"`
		}
		files := []file{}
		var text strings.Builder
		err = coll.Walk(sub, func(name string, info keep.FileInfo) error {
			if info.IsDir() {
				return nil
			}
			files = append(files, file{name, info.Size()})
			shown := name
			if strings.ContainsFunc(name, unicode.IsControl) {
				shown = strconv.Quote(name) // nothing for a terminal to obey
			}
			fmt.Fprintf(&text, "%12d %s\n", info.Size(), shown)
			return nil
		})
		if err != nil {
			return fmt.Errorf("collection %s: %w", id, err)
		}
		return c.print(files, text.String())
	})
}

// splitCollection takes COLLECTION/PATH apart.
func splitCollection(arg string) (id, sub string, err error) {
	id, sub, _ = strings.Cut(arg, "/")
	if !collectionUUID.MatchString(id) && !arvados.ValidPDH(id) {
		return "", "", commandline.Misuse("%q is neither a collection's UUID nor a portable data hash", id)
	}
	return id, strings.Trim(sub, "/"), nil
}
