// Package capture turns what a container left in its output path into one
// manifest (specification mounts-and-output.md, sections 9 to 12).
//
// Capture has two halves. The scan walks the output path as the container saw
// it: the local directory behind it, and the mounts below it. Collections are
// taken over by reference at once; files to be copied are noted. Symbolic links
// are resolved inside the container's mount table and replaced by what they
// point to, never followed on the host. Then the files are read, several at a
// time, and written to the output collection in the order of the scan, so that
// the same output always gives the same manifest.
package capture

import (
	"context"
	"fmt"

	"crunch-oci/arvados"
	"crunch-oci/internal/hostdir"
	"crunch-oci/keep"
	"crunch-oci/supervisor/capture/glob"
)

// Config says what to capture.
type Config struct {
	// Mounts, SecretMounts, OutputPath and OutputGlob are the record's.
	Mounts, SecretMounts map[string]arvados.Mount
	OutputPath           string
	OutputGlob           []string

	// HostDir is the host directory behind a tmp mount at OutputPath. It is
	// not used if the output is a live collection.
	HostDir string
	// OtherBinds are targets of bind mounts that no record names (the
	// certificates): what lies there in HostDir is only a mount point.
	OtherBinds []string

	Collections Collections
	// Live reads the current content of the writable collection that is bound
	// at target. May be nil if there is none.
	Live func(ctx context.Context, target string) (*keep.Collection, error)
	// Blocks makes blocks of other clusters local. May be nil if inputs
	// never come from there.
	Blocks keep.Localizer
	Log    Logger
}

// Collections reads collections with the container's token.
type Collections interface {
	// OpenCollection returns the collection with the given portable data
	// hash or UUID.
	OpenCollection(ctx context.Context, id string) (*keep.Collection, error)
}

// Logger receives lines for the container's log.
type Logger interface {
	Printf(format string, args ...any)
}

// Run captures the output into the empty collection out, flushes it to Keep,
// and returns its manifest with signed locators. The caller saves and closes
// out. The error names every symbolic link that cannot be output.
func Run(ctx context.Context, c Config, out *keep.Collection) (manifest string, err error) {
	s, err := newScan(c, out)
	if err != nil {
		return "", err
	}
	defer s.close()
	if err := s.run(ctx); err != nil {
		return "", fmt.Errorf("error scanning files to copy to output: %w", err)
	}
	for _, dir := range s.dirs {
		if err := out.MkdirAll(dir); err != nil {
			return "", fmt.Errorf("error making directory %q in output collection: %w", dir, err)
		}
	}
	if err := copyFiles(ctx, s.host, s.files, out, c.Log); err != nil {
		return "", err
	}
	manifest, err = out.MarshalManifest(ctx)
	if err != nil {
		return "", fmt.Errorf("error flushing output collection file data: %w", err)
	}
	return localize(ctx, manifest, c.Blocks, c.Log)
}

// scan is the state of the first half.
type scan struct {
	Config
	table *table
	globs glob.Set
	out   *keep.Collection
	host  *hostdir.Dir // nil unless the output is a local directory

	collections map[string]*keep.Collection // by ID

	dirs  []string // to be made in out
	files []file   // to be copied to out

	// active holds the container paths of the local directories that are
	// being walked, to notice a link that leads back.
	active map[string]bool

	badLinks map[string]bool // container paths
	problems []linkError

	linked int // how many more entries may be reached through links
}

// maxLinked bounds the entries reached through links. Eleven directories, each
// with ten links to the next, would otherwise make 10^11 of one file.
const maxLinked = 5_000_000

func newScan(c Config, out *keep.Collection) (*scan, error) {
	globs, err := glob.Compile(c.OutputGlob)
	if err != nil {
		return nil, err
	}
	return &scan{
		Config:      c,
		table:       newTable(c),
		globs:       globs,
		out:         out,
		collections: make(map[string]*keep.Collection),
		active:      make(map[string]bool),
		badLinks:    make(map[string]bool),
		linked:      maxLinked,
	}, nil
}

// file is a regular file to be copied.
type file struct {
	host string // relative to the output directory; "" for an empty file
	dest string // in the output collection
	size int64  // bytes, when scanned
}

func (s *scan) run(ctx context.Context) error {
	if _, m, ok := s.table.containing(s.table.output); ok && m.Kind == "tmp" {
		host, err := hostdir.Open(s.HostDir)
		if err != nil {
			return fmt.Errorf("lstat %q: %w", s.table.output, err)
		}
		s.host = host
	}
	if err := s.add(ctx, place{path: s.table.output, dest: "."}); err != nil {
		return err
	}
	return s.linkErrors()
}

func (s *scan) close() {
	if s.host != nil {
		s.host.Close()
	}
}
