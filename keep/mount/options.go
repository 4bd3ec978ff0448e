package mount

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"crunch-oci/keep/diskcache"
)

// Options is a command line of arv-mount (spec keep.md section 12), as far as
// it has a meaning here.
type Options struct {
	Mountpoint string

	// Dirs are the directories in the root, in the order of the command line.
	Dirs []Dir

	// ReadWrite lets programs write to what is writable. Elsewhere they are told
	// EPERM, and without it EROFS.
	ReadWrite  bool
	AllowOther bool

	// StorageClasses is for new data; none means the cluster's default ones.
	StorageClasses []string

	// Cache says where fetched blocks are to be kept, CacheDir where on disk
	// (empty: the default), CacheBytes how much (0: the default), or
	// CachePercent how much of the file system.
	Cache        CacheKind
	CacheDir     string
	CacheBytes   int64
	CachePercent int

	// StatsInterval is the time between reports on stderr; 0 means none.
	StatsInterval time.Duration
	// Retries is how often blocks are written again, on all Keep services, after
	// the first time. Reading has its own number.
	Retries int
	// RefreshTime is how old what is shown of a collection named by UUID may
	// be.
	RefreshTime time.Duration
	Debug       bool

	// Unmount asks to unmount Mountpoint instead, within UnmountTimeout.
	Unmount        bool
	UnmountTimeout time.Duration
	// Version asks for the program's version only, Help for how it is used.
	Version, Help bool

	// Warn writes a warning to stderr as the mount does. It is not an option:
	// Main sets it for Connect.
	Warn func(string)
}

// Dir is a directory in the root of the mount.
type Dir struct {
	Name string
	// ByUUID makes collections appear under their UUIDs too; without it they
	// only have their portable data hashes.
	ByUUID bool
	// Tmp makes it a new collection, which ends with the mount.
	Tmp bool
}

// CacheKind is where fetched blocks are kept.
type CacheKind int

const (
	DefaultCache CacheKind = iota // what the wiring thinks best
	RAMCache
	DiskCache
)

// ParseArgs reads a command line without the program's name. Its errors are
// for whoever wrote the command line.
func ParseArgs(args []string) (Options, error) {
	o := Options{Retries: 10, RefreshTime: 15 * time.Second, UnmountTimeout: 2 * time.Second}
	foreground := false
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if long, ok := shorthands[arg]; ok {
			arg = long
		}
		if !strings.HasPrefix(arg, "--") || arg == "--" {
			if arg == "--" && len(args) == 1 {
				arg, args = args[0], nil
			}
			if o.Mountpoint != "" || strings.HasPrefix(arg, "-") || arg == "" {
				return o, fmt.Errorf("unexpected argument %q", arg)
			}
			o.Mountpoint = arg
			continue
		}
		name, value, inline := strings.Cut(arg, "=")
		if set, ok := switches[name]; ok {
			if inline {
				return o, fmt.Errorf("%s takes no value", name)
			}
			if name == "--foreground" {
				foreground = true
			}
			set(&o)
			continue
		}
		set, ok := values[name]
		if why, known := elsewhere[name]; known {
			return o, fmt.Errorf("%s is not supported: %s", name, why)
		}
		if !ok {
			return o, fmt.Errorf("unknown option %q", name)
		}
		if !inline {
			if len(args) == 0 {
				return o, fmt.Errorf("%s needs a value", name)
			}
			value, args = args[0], args[1:]
		}
		if err := set(&o, value); err != nil {
			return o, fmt.Errorf("%s %q: %w", name, value, err)
		}
	}
	return o, o.check(foreground)
}

func (o *Options) check(foreground bool) error {
	switch {
	case o.Version, o.Help:
		return nil
	case o.Mountpoint == "":
		return errors.New("no mount point given")
	case o.Unmount:
		return nil
	case !foreground:
		return errors.New("only --foreground is supported: run it in the background yourself")
	case o.CachePercent > 0 && o.Cache != DiskCache:
		return errors.New("--file-cache: a percentage is that of a file system: give --disk-cache too")
	case len(o.Dirs) == 0:
		return errors.New("nothing to mount: give --mount-by-pdh NAME, --mount-by-id NAME or --mount-tmp NAME")
	}
	return nil
}

// switches are the options without a value.
var switches = map[string]func(*Options){
	"--foreground":              func(*Options) {},
	"--read-write":              func(o *Options) { o.ReadWrite = true },
	"--read-only":               func(o *Options) { o.ReadWrite = false },
	"--allow-other":             func(o *Options) { o.AllowOther = true },
	"--disk-cache":              func(o *Options) { o.Cache = DiskCache },
	"--ram-cache":               func(o *Options) { o.Cache = RAMCache },
	"--disable-event-listening": func(*Options) {}, // nothing here listens to events
	"--debug":                   func(o *Options) { o.Debug = true },
	"--unmount":                 func(o *Options) { o.Unmount = true },
	"--version":                 func(o *Options) { o.Version = true },
	"--help":                    func(o *Options) { o.Help = true },
	"--custom":                  func(*Options) {}, // which every mount is here
}

var shorthands = map[string]string{"-d": "--debug", "-h": "--help"}

// elsewhere are options that only arv-mount has, with what to do instead.
var elsewhere = func() map[string]string {
	const (
		layout  = "give --mount-by-id NAME; projects are NAME/UUID"
		process = "run this program yourself, in the background, and end it with --unmount"
		files   = "redirect standard error"
		unmount = "give --unmount with each mount point"
	)
	return map[string]string{
		"--all": layout, "--home": layout, "--shared": layout, "--by-tag": layout, "--by-id": layout, "--by-pdh": layout,
		"--project": layout, "--collection": layout, "--mount-home": layout, "--mount-shared": layout, "--mount-by-tag": layout,
		"--filters": layout, "--exec": process, "--logfile": files, "--replace": unmount, "--unmount-all": unmount,
	}
}()

// Usage is what --help prints.
const Usage = `Usage: crunch-run keep-mount --foreground [options] DIR
       crunch-run keep-mount --unmount [--unmount-timeout SECONDS] DIR

Shows Arvados collections as a file system at DIR, until it is interrupted or
unmounted. The command line is that of arv-mount. Needs root.

What is in DIR (at least one):
  --mount-by-pdh NAME        directory of collections by portable data hash
  --mount-by-id NAME         the same, also by UUID, and projects by UUID
  --mount-tmp NAME           a new collection, which ends with the mount

Options:
  --read-write, --read-only  whether collections by UUID and new ones can be written to
                             (default read-only)
  --allow-other              let other users see it
  --storage-classes A,B      for what is written (default: the cluster's)
  --disk-cache               keep blocks on disk, in --disk-cache-dir DIR (default
                             /var/cache/arvados/keep), or with
  --ram-cache                in memory (default)
  --file-cache SIZE          bytes of them, or for a disk also N%
  --refresh-time SECONDS     how old what has a UUID may be (default 15)
  --retries N                rounds over the Keep services after the first, when writing
                             (default 10; reads of files make 4)
  --crunchstat-interval S    write statistics to standard error (default 0: none)
  --debug                    say more
  --version                  print the version

ARVADOS_API_HOST and ARVADOS_API_TOKEN say where the collections are.
`

// values are the options with one.
var values = map[string]func(*Options, string) error{
	"--mount-by-pdh": func(o *Options, v string) error { return o.addDir(Dir{Name: v}) },
	"--mount-by-id":  func(o *Options, v string) error { return o.addDir(Dir{Name: v, ByUUID: true}) },
	"--mount-tmp":    func(o *Options, v string) error { return o.addDir(Dir{Name: v, Tmp: true}) },
	// Nothing here is bounded by the former, and names are bytes.
	"--directory-cache": func(*Options, string) error { return nil },
	"--encoding":        func(*Options, string) error { return nil },
	"--subtype":         func(*Options, string) error { return nil },
	"--storage-classes": func(o *Options, v string) error {
		for c := range strings.SplitSeq(v, ",") {
			if c = strings.TrimSpace(c); c != "" {
				o.StorageClasses = append(o.StorageClasses, c)
			}
		}
		return nil
	},
	"--disk-cache-dir": func(o *Options, v string) error { o.CacheDir = v; return nil },
	"--file-cache": func(o *Options, v string) error {
		limit, err := diskcache.ParseLimit(v)
		o.CacheBytes, o.CachePercent = limit.Bytes, limit.Percent
		return err
	},
	"--crunchstat-interval": func(o *Options, v string) error { return seconds(&o.StatsInterval, v) },
	"--refresh-time":        func(o *Options, v string) error { return seconds(&o.RefreshTime, v) },
	"--unmount-timeout":     func(o *Options, v string) error { return seconds(&o.UnmountTimeout, v) },
	"--retries": func(o *Options, v string) error {
		n, err := strconv.ParseUint(v, 10, 16)
		o.Retries = int(n)
		return err
	},
}

func (o *Options) addDir(d Dir) error {
	if d.Name == "" || d.Name == "." || d.Name == ".." || strings.ContainsAny(d.Name, "/\x00") {
		return errors.New("not a directory name")
	}
	for _, other := range o.Dirs {
		if other.Name == d.Name {
			return errors.New("used twice")
		}
	}
	o.Dirs = append(o.Dirs, d)
	return nil
}

func seconds(d *time.Duration, v string) error {
	s, err := strconv.ParseFloat(v, 64)
	if err != nil {
		return err
	}
	if !(s >= 0 && s < 1e9) {
		return errors.New("not a number of seconds")
	}
	*d = time.Duration(s * float64(time.Second))
	return nil
}
