// Package layer applies one image layer, a tar stream, to a directory that
// will be a lowerdir of an overlay mount.
//
// The stream is hostile. The containment does not rest on checking names: every
// system call names one path component relative to the descriptor of a
// directory that this package made and opened without following links, so no
// entry can reach anything outside the directory, whatever it is called.
//
// What an entry means is what Docker's overlay2 driver and containerd make of
// it, because images are made for them:
//
//   - A name is cleaned lexically. One that leads above the root is an error,
//     not clamped; an absolute one is relative to the root.
//   - Symbolic links in the parents of a name are followed as inside a chroot.
//     Only this layer is looked at: where a lower layer has lib -> usr/lib and
//     this one holds lib/x, lib becomes a directory that hides the link.
//   - The last component is never followed: a later entry replaces an earlier
//     one, except that a directory keeps its contents when named again.
//   - A parent that has no entry (an implicit directory) is made root:root 0755.
//     If a lower layer has it, the overlay would show the wrong owner and mode;
//     Result.ImplicitDirs lets the caller put that right.
//   - Whiteouts hide what lower layers have and never an entry of their own
//     layer (image-spec, layer.md, "Whiteouts"), in whatever order the two come.
//     A whiteout next to a directory of the same name makes it opaque.
//
// Whiteouts become what the kernel expects (Documentation/filesystems/overlayfs.rst):
// a character device 0:0, and trusted.overlay.opaque=y on an opaque directory.
package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

var (
	// ErrMalformed says that the stream is not a well-formed layer.
	ErrMalformed = errors.New("malformed layer")
	// ErrEscape says that an entry names something outside of the layer's root.
	ErrEscape = errors.New("entry leads out of the layer")
	// ErrLimit says that the layer holds more than Options or the kind of file
	// system allow.
	ErrLimit = errors.New("layer exceeds the limit")
)

// SizeError is the ErrLimit of a layer that really holds more file content than
// Options.MaxBytes. Where that bound is what the file system has left, this is
// the one that another machine may not meet.
type SizeError struct {
	Max int64 // bytes
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("%v of %d bytes of file content", ErrLimit, e.Max)
}

// Unwrap gives ErrLimit.
func (e *SizeError) Unwrap() error { return ErrLimit }

// EntryError is a failure on one entry of the layer.
type EntryError struct {
	Name string // as it stands in the tar header
	Err  error
}

func (e *EntryError) Error() string { return printable(e.Name) + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *EntryError) Unwrap() error { return e.Err }

// printable quotes a name that would disturb a terminal or a log line.
// A very long one is cut.
func printable(s string) string {
	if len(s) > 250 {
		s = s[:250] + "..."
	}
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	if s == "" {
		return `""`
	}
	return s
}

// Defaults of Options.
const (
	// DefaultMaxEntries is about ten times what the largest images in use hold.
	// Each directory costs about 200 bytes of memory until the layer is done.
	DefaultMaxEntries = 2_000_000
	// DefaultMaxSparse bounds the time spent on the zeros of sparse files.
	DefaultMaxSparse = 1 << 40
)

// Options bounds what one layer may do. Zero values mean the defaults.
type Options struct {
	// MaxEntries bounds the files, directories (also implicit ones), links,
	// devices and whiteouts made. 0 means DefaultMaxEntries.
	MaxEntries int64
	// MaxBytes bounds the bytes written as file content and extended attributes. 0
	// means no bound but the file system's. Exceeding it is a SizeError, and only
	// what the stream really holds exceeds it: a header may claim anything.
	MaxBytes int64
	// MaxSparse bounds the sum of the logical sizes of sparse files, in bytes.
	// 0 means DefaultMaxSparse.
	MaxSparse int64
}

// Result tells what a layer held.
type Result struct {
	// Entries is the number of things made, Bytes what was written into files
	// and extended attributes.
	Entries int64
	Bytes   int64
	// OpaqueRoot says that nothing of the lower layers is to be seen. The kernel
	// ignores the opaque mark on a lowerdir itself: leave the lower layers out.
	OpaqueRoot bool
	// ImplicitDirs are the directories without an entry of their own, "" being
	// the root: slash-separated raw bytes, parents first.
	ImplicitDirs []string
	// WhiteoutDirs are the directories that hold whiteouts. The kernel shows
	// them as broken entries in a directory that exists in no other layer.
	WhiteoutDirs []string
	// SkippedXattrs counts extended attributes that were left out because they
	// belong to the machine the image was built on (SELinux, IMA, EVM) or
	// because the file system does not take them.
	SkippedXattrs int
}

// Extract reads the tar stream r to its very end, also past the end-of-archive
// marker, and makes its entries below dir, an empty directory of which nobody
// else knows yet. What it has made stays there when it fails; a failure is an
// EntryError where it concerns an entry, and the error of r where reading
// failed. Nothing is synced.
//
// Owners, modes, modification times and extended attributes are set as the
// layer has them, so it needs root.
func Extract(ctx context.Context, r io.Reader, dir string, o Options) (Result, error) {
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.MaxSparse == 0 {
		o.MaxSparse = DefaultMaxSparse
	}
	t, err := openTree(dir)
	if err != nil {
		return Result{}, err
	}
	defer t.close()
	src := &errReader{r: r}
	x := &extractor{ctx: ctx, tree: t, tr: tar.NewReader(src), opt: o, buf: make([]byte, bufSize), umask: umask()}
	src.limit = x.idle
	if err := x.run(); err != nil {
		// The tar reader turns what the stream says into its own words.
		if src.err != nil && src.err != io.EOF {
			err = src.err
		}
		return x.res, err
	}
	// The layer's digest covers what follows the marker as well.
	if _, err := io.CopyBuffer(io.Discard, onlyReader{src}, x.buf); err != nil {
		return x.res, err
	}
	if err := x.finish(); err != nil {
		return x.res, err
	}
	return x.res, nil
}

// bufSize is small enough to stay in a core's cache between reading the stream
// and writing the file, and large enough for few system calls.
const bufSize = 256 << 10

// onlyReader hides everything but Read, so that the buffer given is used.
type onlyReader struct{ io.Reader }

// maxIdle and idlePerEntry bound the bytes of the stream that become nothing in
// the file system: headers, padding, the bodies of whiteouts, what follows the
// end-of-archive marker. A compressed layer of some megabytes could keep a
// processor busy for days with them.
const (
	maxIdle      = 1 << 30
	idlePerEntry = 64 << 10
)

// idle fails if n bytes of the stream are more than what has been made of them
// explains.
func (x *extractor) idle(n int64) error {
	if n-x.res.Bytes-x.sparse-x.passed > maxIdle+idlePerEntry*x.res.Entries {
		return fmt.Errorf("%w of %d bytes that are no content", ErrLimit, int64(maxIdle))
	}
	return nil
}

// errReader remembers what the stream said.
type errReader struct {
	r     io.Reader
	n     int64             // bytes read
	limit func(int64) error // of n
	err   error
}

func (e *errReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.n += int64(n)
	if err == nil {
		err = e.limit(e.n)
	}
	if err != nil {
		e.err = err
	}
	return n, err
}

// extractor is one run of Extract.
type extractor struct {
	ctx  context.Context
	tree *tree
	tr   *tar.Reader
	opt  Options
	buf  []byte
	res  Result

	umask uint32 // of this process

	sparse int64 // logical bytes of sparse files so far
	kept   int64 // bytes of memory for the extended attributes of directories
	passed int64 // bytes read of a file that is too large
}

// run makes everything but what finish does.
func (x *extractor) run() error {
	for {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		h, err := x.tr.Next()
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, tar.ErrInsecurePath) && h != nil:
			// GODEBUG=tarinsecurepath=0; names are our own business.
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%w: it ends in the middle of an entry", ErrMalformed)
		case err != nil:
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if err := x.entry(h); err != nil {
			var already *EntryError
			if errors.As(err, &already) || x.ctx.Err() != nil {
				return err
			}
			return &EntryError{Name: h.Name, Err: err}
		}
	}
}

// count takes one more thing to be made from the budget.
func (x *extractor) count() error {
	x.res.Entries++
	if x.res.Entries > x.opt.MaxEntries {
		return fmt.Errorf("%w of %d entries", ErrLimit, x.opt.MaxEntries)
	}
	return nil
}

// umask is this process's file mode creation mask, or all bits where the kernel
// does not tell (proc(5): since Linux 4.7).
func umask() uint32 {
	raw, _ := os.ReadFile("/proc/thread-self/status")
	_, rest, _ := strings.Cut(string(raw), "\nUmask:")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseUint(strings.TrimSpace(line), 8, 12)
	if err != nil {
		return 0o7777
	}
	return uint32(n)
}

// retry calls f again while a signal interrupts it.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
