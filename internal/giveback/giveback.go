// Package giveback returns to the node the memory that a process needed while it
// was busy, and does not need to be idle.
package giveback

import (
	"bufio"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Memory returns the heap's garbage, and takes the pages of program and
// libraries out of this process: those that it goes on using are mapped again
// when they are touched (a minor fault each; the kernel maps 16 at a time), those
// used only for the start are no longer counted, nor kept from being reclaimed,
// on behalf of this process. It takes some milliseconds.
func Memory() {
	debug.FreeOSMemory()
	if !local("/proc/self/exe") {
		return
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return // the pages stay where they are
	}
	defer maps.Close()
	for _, m := range unchanged(maps) {
		// Mapped again from the file when touched (madvise(2), MADV_DONTNEED); a
		// failure means that the pages stay.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

// remote are file systems (statfs(2); Lustre's and GPFS's numbers are not in it)
// whose files another machine may replace, or that need a server to read them
// again: a page that cannot be had again would end the process with SIGBUS.
var remote = []int64{unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC,
	unix.CODA_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.V9FS_MAGIC, unix.FUSE_SUPER_MAGIC, lustre, gpfs}

const (
	lustre = 0x0bd00bd0
	gpfs   = 0x47504653
)

// local tells whether a file lies on this machine for certain.
func local(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && !slices.Contains(remote, int64(st.Type))
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// unchanged finds the mappings of files, in text like that of /proc/self/smaps
// (proc(5)), that can be read from their files again at any time: private, not
// writable, and without a page of their own, as relocated and then protected
// data has.
func unchanged(smaps io.Reader) (found []mapping) {
	var m mapping
	candidate, none := false, false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 0 {
			continue
		}
		if !strings.HasSuffix(f[0], ":") { // a new mapping: addresses perms offset device inode path
			m, candidate, none = mapping{}, false, false
			from, to, _ := strings.Cut(f[0], "-")
			start, err1 := strconv.ParseUint(from, 16, 64)
			end, err2 := strconv.ParseUint(to, 16, 64)
			if err1 != nil || err2 != nil || len(f) < 6 || !strings.HasPrefix(f[5], "/") {
				continue
			}
			m = mapping{uintptr(start), uintptr(end)}
			candidate = f[1] == "r-xp" || f[1] == "r--p"
			continue
		}
		switch {
		case f[0] == "Anonymous:" && len(f) > 1 && f[1] == "0":
			none = true
		case len(f) > 1 && (f[0] == "Anonymous:" || f[0] == "Swap:" || f[0] == "Locked:") && f[1] != "0":
			candidate = false
		case f[0] == "VmFlags:": // the last line of a mapping
			if candidate && none {
				found = append(found, m)
			}
			candidate = false
		}
	}
	return found
}
