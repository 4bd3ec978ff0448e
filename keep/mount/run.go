package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxRead is the largest read request, the kernel's limit.
	maxRead = 1 << 20
	// readAheadBytes is how far the kernel reads ahead of a program that reads
	// a file through. Up to 1 MiB the CPU time per byte falls, to two thirds
	// of that at 128 KiB; beyond 2 MiB it rises, as data leaves the CPU's cache
	// before it is copied.
	readAheadBytes = 1 << 20
	// maxBackground is how many requests of read-ahead the kernel has in work
	// at a time, over all files. Each costs a buffer of up to 1 MiB here.
	maxBackground = 32
	// endGrace is how long requests may take to end when the mount does.
	endGrace = 2 * time.Second
)

// Run mounts and serves until ctx ends or somebody unmounts, and leaves nothing
// mounted. It calls ready once, when the mount can be used.
//
// The process must not touch anything below the mount point, nor start
// processes that do before they have been executed: see hanwen/go-fuse,
// fs/api.go, "Deadlocks".
func Run(ctx context.Context, opts Options, b Backend, ready func(), stderr io.Writer) (err error) {
	lg := &logger{w: stderr, debug: opts.Debug}
	if b.Close != nil {
		defer func() { err = errors.Join(err, b.Close()) }()
	}
	// The table of mounts shows real paths.
	if opts.Mountpoint, err = realPath(opts.Mountpoint); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	s := newServer(ctx, opts, b, lg)
	defer func() { err = errors.Join(err, s.close()) }()
	for _, d := range opts.Dirs {
		if !d.Tmp {
			continue
		}
		if err := s.addTmp(d.Name); err != nil {
			return fmt.Errorf("make collection %s: %w", d.Name, err)
		}
	}
	// The kernel would take a file, too, and show what nobody can look into.
	if info, err := os.Stat(opts.Mountpoint); err == nil && !info.IsDir() {
		return fmt.Errorf("mount %s: %w", opts.Mountpoint, unix.ENOTDIR)
	}
	fs, err := fuse.NewServer(s, opts.Mountpoint, &fuse.MountOptions{
		AllowOther:        opts.AllowOther,
		MaxBackground:     maxBackground,
		MaxWrite:          maxRead, // also the limit of reads
		MaxReadAhead:      maxRead,
		FsName:            "keep",
		Name:              "arv-mount",
		DirectMountStrict: true, // no fusermount
		DisableXAttrs:     true,
		// Content changes only by the kernel's own doing.
		ExplicitDataCacheControl: true,
		// A spliced read of a cached block that was cut off would be taken for the
		// end of the file.
		DisableSplice: true,
		Logger:        log.New(lg, "", 0),
		PanicHandler: func(what any) fuse.Status {
			stack := strings.ReplaceAll(string(debug.Stack()), "\n", " | ")
			lg.errorf("%s: panic: %v: %s", unhandled, what, stack)
			return fuse.EIO
		},
	})
	if err != nil {
		if errors.Is(err, unix.ENOTCONN) {
			err = fmt.Errorf("%w: a mount whose server has died is there; remove it with --unmount", err)
		}
		return fmt.Errorf("mount %s: %w", opts.Mountpoint, err)
	}
	served := make(chan struct{})
	go func() { defer close(served); fs.Serve() }()

	device := ""
	if mounts, err := fuseMounts(opts.Mountpoint); len(mounts) > 0 {
		device = mounts[len(mounts)-1].device
		if err := setReadAhead(device, readAheadBytes); err != nil {
			lg.debugf("read-ahead stays small: %v", err)
		}
	} else {
		lg.warningf("mount %s is not in the table of mounts (%v)", opts.Mountpoint, err)
	}
	if opts.StatsInterval > 0 {
		s.background(func(ctx context.Context) {
			reportStats(ctx, &s.stats, b.Counters, lg, opts.StatsInterval)
		})
	}
	if opts.ReadWrite {
		s.background(s.retryUploads)
		s.background(s.saveLater)
		s.background(s.renewBlocks)
	}
	if b.Idle != nil {
		s.background(func(ctx context.Context) { s.watchIdle(ctx, b.Idle) })
	}
	ready()

	select {
	case <-served: // somebody unmounted, or aborted the connection
	case <-ctx.Done():
	}
	return end(opts.Mountpoint, device, served)
}

// end unmounts, if that has not been done. Lazily: programs that still use the
// mount must not delay it. They, and their requests, are cut off, because what
// is still open keeps the connection up. That has to come first.
func end(mountpoint, device string, served <-chan struct{}) error {
	select {
	case <-served:
	default:
		// Where somebody has detached it already, the end of this process cuts
		// them off.
		_ = abortMount(mountpoint, device)
	}
	mounts, err := fuseMounts(mountpoint)
	if n := len(mounts); n > 0 && mounts[n-1].device == device {
		err = unix.Unmount(mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.EINVAL {
			err = nil // somebody was faster
		}
	}
	if err != nil {
		err = fmt.Errorf("unmount %s: %w", mountpoint, err)
	}
	timer := time.NewTimer(endGrace)
	defer timer.Stop()
	select {
	case <-served:
	case <-timer.C:
		// The end of the process will end them.
	}
	return err
}

// idleAfter is how long the mount must have had nothing to do.
const idleAfter = 5 * time.Second

// watchIdle calls idle once after each burst of requests.
func (s *server) watchIdle(ctx context.Context, idle func()) {
	var seen, freed int64
	every(ctx, idleAfter, func() {
		now := s.stats.total()
		if now == seen && now != freed {
			idle()
			freed = now
		}
		seen = now
	})
}

// every calls do at that interval, one call after the other, until ctx ends.
func every(ctx context.Context, interval time.Duration, do func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}
