// Package mounts turns the mounts of a container record into a checked Plan,
// and the Plan into directories and files on disk.
//
// NewPlan is pure: it validates the record (specification
// mounts-and-output.md, section 2) and decides what is bound where, what is
// staged into the output directory, and how the FUSE server is called. Then,
// in this order, Plan.Prepare makes the directories and private files,
// Plan.CheckInputs asks whether every collection and path exists, and
// Plan.StageOutput copies into the output directory what the container may
// change there. Content of collections comes through the Inputs interface,
// never through the FUSE mount. Only if the output is a new collection, staging
// writes to the mount, and the caller sees to it that a server that does not
// answer hangs nothing.
package mounts

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"crunch-oci/arvados"
)

// Input is what NewPlan decides from.
type Input struct {
	// Mounts and SecretMounts map targets (absolute container paths, or
	// stdin, stdout, stderr) to mounts.
	Mounts, SecretMounts map[string]arvados.Mount
	OutputPath           string

	OutputStorageClasses []string
	KeepCacheDisk        int64 // bytes, 0 for none; wins over KeepCacheRAM
	KeepCacheRAM         int64 // bytes, 0 for none
	// CacheDir is the disk cache that the FUSE servers of the node share; ""
	// means one of the run's own.
	CacheDir string

	// CABundle is a host file to be seen at CABundleTarget unless a mount
	// has that target, or "" for none; see FindCABundle. Set it only if the
	// container uses the API.
	CABundle string

	// RunDir is the run's private directory (mode 0700), an absolute host
	// path. Everything the plan makes lies below it.
	RunDir string
	// AllowOther lets users other than the supervisor's read the FUSE
	// mount; containers whose processes are not root need it.
	AllowOther bool
	// StatsInterval is the interval between statistics lines of the FUSE
	// server, rounded down to seconds.
	StatsInterval time.Duration
}

// CABundleTarget is where a container with API access finds the certificates.
const CABundleTarget = "/etc/arvados/ca-certificates.crt"

// Plan is a validated set of mounts. Host paths are absolute.
type Plan struct {
	RunDir string
	// KeepDir is the mount point of the FUSE server.
	KeepDir string
	// CacheDir is the disk cache of the FUSE server, or "". If it is below
	// RunDir, it is the run's own.
	CacheDir string
	// TmpDirs are the directories behind tmp mounts.
	TmpDirs []string
	// Files are the private files behind json and text mounts, each alone
	// in a directory of mode 0700.
	Files []File
	// Binds are in mount order: parents before children.
	Binds []Bind
	// Staged is copied into the output directory, in this order.
	Staged []Staged
	// NewCollections is how many new collections the FUSE server shows at
	// its root as tmp0, tmp1, ...
	NewCollections int
	// ByUUID says that a collection is named by UUID, so that the FUSE
	// server cannot do without the event server.
	ByUUID bool
	// KeepMountArgs is the command line of the FUSE server, without the
	// name of the program.
	KeepMountArgs []string

	// OutputPath is the cleaned container path of the output.
	OutputPath string
	// OutputDir is the host directory behind OutputPath.
	OutputDir string
	// OutputIsCollection says that OutputDir is a new collection in the
	// FUSE mount instead of a local directory.
	OutputIsCollection bool

	Stdin          Stdin
	Stdout, Stderr *OutputFile // nil: to the log collection

	// Warnings are for the log: mounts that have no effect.
	Warnings []string

	// inputs are what must exist in Keep.
	inputs []input
}

// input is a path in a collection that a mount needs, and the name that
// messages give it: its path below the FUSE mount point.
type input struct {
	Collection
	source string
	isFile bool
}

// NeedsKeepMount reports whether anything is bound from the FUSE mount.
func (p *Plan) NeedsKeepMount() bool {
	return slices.ContainsFunc(p.Binds, func(b Bind) bool { return b.Kind == BindCollection })
}

// NewCollectionAt returns the directory in the FUSE mount of the new collection
// that is mounted at target.
func (p *Plan) NewCollectionAt(target string) (dir string, ok bool) {
	for _, b := range p.Binds {
		if b.Target == target && b.Kind == BindCollection && filepath.Dir(b.Source) == p.KeepDir {
			return b.Source, true
		}
	}
	return "", false
}

// BindKind says what is behind a Bind.
type BindKind int

// The kinds of binds.
const (
	BindTmp        BindKind = iota // a directory of its own on local disk
	BindCollection                 // a file or directory of a collection, in the FUSE mount
	BindFile                       // the text of a json or text mount
	BindCABundle                   // a host file with certificates
)

// Bind is one bind mount from the host into the container.
type Bind struct {
	Source, Target string
	ReadOnly       bool
	Kind           BindKind
	// Secret content must not be seen outside the container.
	Secret bool
}

// File is a private file of mode 0444 with the text of a json or text mount.
type File struct {
	Path    string
	Content []byte
}

// Staged is copied to Path, relative to the output directory. It is either a
// file with Content, or a file or tree of Collection, or, without an ID, an
// empty directory.
type Staged struct {
	Path       string
	IsFile     bool
	Content    []byte
	Collection Collection
	source     string // the name of the origin in messages
}

// Stdin is what the process reads: the end of file at once if neither field is
// set.
type Stdin struct {
	Content    []byte
	Collection *Collection
}

// OutputFile is a file in the output directory that receives stdout or stderr.
type OutputFile struct {
	// Path is relative to the output directory.
	Path string
}

// NewPlan validates the mounts and plans them. Its errors are the record's
// fault: another node would meet them too. Secrets never appear in them.
func NewPlan(in Input) (*Plan, error) {
	if !filepath.IsAbs(in.RunDir) {
		return nil, fmt.Errorf("run directory %q is not an absolute path", in.RunDir)
	}
	p := &planner{
		Input: in,
		plan:  &Plan{RunDir: in.RunDir, OutputPath: path.Clean(in.OutputPath)},
		seen:  make(map[string]string),
	}
	p.plan.KeepDir = p.newName("keep")
	if in.KeepCacheDisk > 0 {
		if p.plan.CacheDir = in.CacheDir; in.CacheDir == "" {
			p.plan.CacheDir = p.newName("keepcache")
		}
	}
	targets, err := p.targets()
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if err := p.add(t); err != nil {
			return nil, err
		}
	}
	if p.plan.OutputDir == "" {
		return nil, errOutputPath
	}
	if err := p.checkHidden(); err != nil {
		return nil, err
	}
	slices.SortFunc(p.plan.Binds, func(a, b Bind) int { return strings.Compare(a.Target, b.Target) })
	p.plan.KeepMountArgs = p.keepMountArgs()
	return p.plan, nil
}

// planner holds the state of one NewPlan.
type planner struct {
	Input
	plan  *Plan
	names int
	seen  map[string]string // cleaned target -> target as given
}

// newName makes up a path below the run directory. The run directory is
// private and new, so the number need not be random.
func (p *planner) newName(prefix string) string {
	p.names++
	return filepath.Join(p.RunDir, prefix+strconv.Itoa(p.names))
}

// below returns the path of name relative to dir, both cleaned container paths.
func below(name, dir string) (string, bool) {
	if dir != "/" {
		dir += "/"
	}
	rel, ok := strings.CutPrefix(name, dir)
	return rel, ok && rel != ""
}

// keepMountArgs is the command line of arv-mount (section 8), order included.
func (p *planner) keepMountArgs() []string {
	args := []string{"--foreground", "--read-write"}
	// Never an empty value (keep.md, section 12).
	if classes := strings.Join(p.OutputStorageClasses, ","); classes != "" {
		args = append(args, "--storage-classes", classes)
	}
	args = append(args, "--crunchstat-interval="+strconv.FormatInt(int64(p.StatsInterval/time.Second), 10))
	if p.AllowOther {
		args = append(args, "--allow-other")
	}
	switch {
	case p.KeepCacheDisk > 0:
		args = append(args, "--disk-cache", "--disk-cache-dir", p.plan.CacheDir,
			"--file-cache", strconv.FormatInt(p.KeepCacheDisk, 10))
	case p.KeepCacheRAM > 0:
		args = append(args, "--ram-cache", "--file-cache", strconv.FormatInt(p.KeepCacheRAM, 10))
	}
	for i := range p.plan.NewCollections {
		args = append(args, "--mount-tmp", newCollectionName(i))
	}
	if p.plan.ByUUID {
		args = append(args, "--mount-by-id", "by_id")
	} else {
		// Otherwise every container would subscribe to the event server.
		args = append(args, "--mount-by-pdh", "by_id", "--disable-event-listening")
	}
	return append(args, "--mount-by-id", "by_uuid", p.plan.KeepDir)
}

func newCollectionName(n int) string { return "tmp" + strconv.Itoa(n) }
