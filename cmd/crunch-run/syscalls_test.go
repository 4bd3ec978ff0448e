package main_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// underWatch, as first argument, makes the test binary run a command whose
// system calls are announced on a socket:
//
//	main.test under-watch SOCKET COMMAND [ARG]...
const underWatch = "under-watch"

func init() {
	if len(os.Args) > 3 && os.Args[1] == underWatch {
		runtime.LockOSThread() // the filter is this thread's, and survives exec
		err := watchMyself(os.Args[2])
		if err == nil {
			err = syscall.Exec(os.Args[3], os.Args[3:], os.Environ())
		}
		fmt.Fprintln(os.Stderr, "under-watch:", err)
		os.Exit(125)
	}
}

// watchedCalls are those that change the node and may fail. Of those in the
// second group only some forms are of interest, see filter.
var watchedCalls = map[int]string{
	unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount", unix.SYS_FSOPEN: "fsopen", unix.SYS_FSMOUNT: "fsmount",
	unix.SYS_FSCONFIG: "fsconfig", unix.SYS_OPEN_TREE: "open_tree", unix.SYS_MOVE_MOUNT: "move_mount",
	unix.SYS_MOUNT_SETATTR: "mount_setattr", unix.SYS_PIVOT_ROOT: "pivot_root",
	unix.SYS_UNSHARE: "unshare", unix.SYS_SETNS: "setns", unix.SYS_FORK: "fork", unix.SYS_VFORK: "fork",
	unix.SYS_MKDIR: "mkdir", unix.SYS_MKDIRAT: "mkdir", unix.SYS_RENAME: "rename", unix.SYS_RENAMEAT: "rename", unix.SYS_RENAMEAT2: "rename",
	unix.SYS_UNLINK: "unlink", unix.SYS_UNLINKAT: "unlink", unix.SYS_RMDIR: "unlink",
	unix.SYS_LINKAT: "link", unix.SYS_SYMLINKAT: "symlink", unix.SYS_MKNODAT: "mknod",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fsync", unix.SYS_SYNCFS: "fsync", unix.SYS_FTRUNCATE: "truncate",
	unix.SYS_FCHOWNAT: "chown", unix.SYS_FCHMODAT: "chmod",
	unix.SYS_OPENAT2: "open",

	unix.SYS_CLONE: "fork", unix.SYS_CLONE3: "fork", unix.SYS_OPENAT: "open", unix.SYS_OPEN: "open",
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "write",
}

// filter lets everything pass but watchedCalls: of clone only what makes
// processes, of open only what may write.
func filter() []unix.SockFilter {
	const ( // offsets in struct seccomp_data (seccomp(2))
		number, arch, args = 0, 4, 16
	)
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	ret := func(what uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what} }
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	allow, notify := ret(unix.SECCOMP_RET_ALLOW), ret(unix.SECCOMP_RET_USER_NOTIF)
	f := []unix.SockFilter{load(arch), equal(unix.AUDIT_ARCH_X86_64, 1, 0), allow, load(number)}
	someBits := func(nr, arg, bits uint32, ifSome, ifNone unix.SockFilter) {
		f = append(f, equal(nr, 0, 4), load(args+8*arg),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: bits, Jt: 0, Jf: 1}, ifSome, ifNone)
	}
	const writing = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC
	someBits(unix.SYS_CLONE, 0, unix.CLONE_THREAD, allow, notify)
	someBits(unix.SYS_OPENAT, 2, writing, notify, allow)
	someBits(unix.SYS_OPEN, 1, writing, notify, allow)
	for nr := range watchedCalls {
		f = append(f, equal(uint32(nr), 0, 1), notify)
	}
	return append(f, allow)
}

// watchMyself puts this thread under the filter and sends the descriptor that
// announces its calls to a socket.
func watchMyself(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	rules := filter()
	program := unix.SockFprog{Len: uint16(len(rules)), Filter: &rules[0]}
	// Once a call has been announced, only death interrupts its waiting.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return unix.Sendmsg(int(f.Fd()), []byte{0}, unix.UnixRights(int(fd)), nil, 0)
}

// seccompCall is struct seccomp_notif, seccompReply struct seccomp_notif_resp.
type seccompCall struct {
	ID      uint64
	PID     uint32
	Flags   uint32
	Number  int32
	Arch    uint32
	Pointer uint64
	Args    [6]uint64
}

type seccompReply struct {
	ID    uint64
	Value int64
	Error int32
	Flags uint32
}

// callWatch sees the system calls of a node's processes and decides what becomes
// of them.
type callWatch struct {
	node *node
	// decide is told each call, with its name as in the table, and returns the
	// error that it is to fail with, or 0. A call waits until it returns.
	decide func(name string) syscall.Errno
	busy   sync.WaitGroup
}

// watchCalls makes the programs that are started on the node from now on
// announce their calls.
func watchCalls(t testing.TB, n *node, decide func(name string) syscall.Errno) *callWatch {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "watch") // sockets must have short names
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	w := &callWatch{node: n, decide: decide}
	w.busy.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.busy.Go(func() { w.serve(t, conn.(*net.UnixConn)) })
		}
	})
	before := n.prefix
	n.prefix = []string{self, underWatch, socket}
	t.Cleanup(func() {
		n.prefix = before
		_ = l.Close()
		w.busy.Wait()
		_ = os.RemoveAll(dir)
	})
	return w
}

// serve answers the calls of one tree of processes until all have ended.
func (w *callWatch) serve(t testing.TB, conn *net.UnixConn) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	_ = conn.Close()
	var fds []int
	if messages, parseErr := unix.ParseSocketControlMessage(oob[:n]); err == nil && parseErr == nil && len(messages) == 1 {
		fds, err = unix.ParseUnixRights(&messages[0])
	}
	if err != nil || len(fds) != 1 {
		t.Errorf("no descriptor from the watched program: %v", err)
		return
	}
	fd := fds[0]
	unix.CloseOnExec(fd)
	var calls sync.WaitGroup
	defer func() { calls.Wait(); _ = unix.Close(fd) }()
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); errors.Is(err, unix.EINTR) {
			continue
		}
		if p[0].Revents&unix.POLLIN == 0 {
			return // nobody is left who could call
		}
		var call seccompCall
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&call))); errno != 0 {
			continue // its caller has died
		}
		calls.Go(func() {
			reply := seccompReply{ID: call.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
			if name := w.name(call); name != "" {
				if errno := w.decide(name); errno != 0 {
					reply = seccompReply{ID: call.ID, Error: -int32(errno)}
				}
			}
			_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&reply)))
		})
	}
}

// name is what a call is called in the table: who does what to which file. It is
// "" for what is not ours, or no file.
func (w *callWatch) name(c seccompCall) string {
	proc := fmt.Sprintf("/proc/%d", c.PID)
	role := w.role(proc)
	if role == "" {
		return ""
	}
	what := watchedCalls[int(c.Number)]
	at := func(i int) string { return memoryString(proc, c.Args[i]) }
	of := func(i int) string { // a file descriptor
		path, _ := os.Readlink(fmt.Sprintf("%s/fd/%d", proc, int32(c.Args[i])))
		return path
	}
	in := func(dir, name int) string {
		path := at(name)
		if !strings.HasPrefix(path, "/") {
			base := ""
			if int32(c.Args[dir]) != unix.AT_FDCWD {
				base = of(dir)
			}
			path = filepath.Join(base, path)
		}
		return path
	}
	path := ""
	switch c.Number {
	case unix.SYS_MOUNT:
		if path = at(1); path == "" {
			path = "(nothing)"
		}
		if fs := at(2); fs != "" {
			what += " " + fs
		}
	case unix.SYS_UMOUNT2, unix.SYS_MKDIR, unix.SYS_UNLINK, unix.SYS_RMDIR, unix.SYS_OPEN, unix.SYS_FSOPEN:
		path = at(0)
	case unix.SYS_RENAME:
		path = at(1)
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_MOVE_MOUNT, unix.SYS_LINKAT:
		path = in(2, 3)
	case unix.SYS_SYMLINKAT:
		path = in(1, 2)
	case unix.SYS_OPENAT2:
		path = in(0, 1)
		if how := memory(proc, c.Args[2], 8); len(how) == 8 && binary.LittleEndian.Uint64(how)&(unix.O_WRONLY|unix.O_RDWR|unix.O_CREAT) == 0 {
			return ""
		}
	case unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_OPENAT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR, unix.SYS_MKNODAT, unix.SYS_FCHOWNAT, unix.SYS_FCHMODAT:
		path = in(0, 1)
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNCFS, unix.SYS_FTRUNCATE, unix.SYS_WRITE, unix.SYS_PWRITE64:
		if path = of(0); !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "/dev/") || strings.HasPrefix(path, "/memfd") {
			return "" // a pipe, a socket, an event
		}
	case unix.SYS_FSCONFIG:
		path = at(2)
	case unix.SYS_CLONE3:
		if flags := memory(proc, c.Args[0], 8); len(flags) < 8 || binary.LittleEndian.Uint64(flags)&unix.CLONE_THREAD != 0 {
			return ""
		}
	}
	return strings.TrimSpace(role + ": " + what + " " + w.place(path))
}

// role tells our processes apart; "" are those of others, such as the user's.
func (w *callWatch) role(proc string) string {
	cmdline, _ := os.ReadFile(proc + "/cmdline")
	args := strings.Split(string(cmdline), "\x00")
	exe, _ := os.Readlink(proc + "/exe")
	switch {
	case len(args) < 2:
		return ""
	case args[1] == "keep-mount", args[1] == "keepstore":
		return args[1]
	case args[1] == "init":
		if exe == program || strings.Contains(exe, "runc") || strings.Contains(exe, "memfd") {
			return "init"
		}
		return ""
	case strings.HasSuffix(args[0], "crunch-run") || exe == program:
		return "supervisor"
	}
	return ""
}

var (
	uuidName   = regexp.MustCompile(`[0-9a-z]{5}-[0-9a-z]{5}-[0-9a-z]{15}`)
	hashName   = regexp.MustCompile(`[0-9a-f]{12,}`)
	numberName = regexp.MustCompile(`[0-9]+`)
	scratch    = regexp.MustCompile(`TMP/crunch-run\.UUID\.[^/]*`)
	insideOf   = regexp.MustCompile(`^(STORE/tmp/[^/]*/[^/]*|STORE/layers/[^/]*|SCRATCH/[^/]*rootfs)/.*`)
	cgroupPath = regexp.MustCompile(`^/sys/fs/cgroup/.*(CGROUP.*)`)
)

// place is a path without what is different in each run.
func (w *callWatch) place(path string) string {
	for _, r := range [][2]string{
		{w.node.store(), "STORE"}, {w.node.runtime(), "RUN"}, {w.node.locks(), "LOCKS"}, {w.node.unfinished(), "UNFINISHED"},
		{w.node.tmp(), "TMP"}, {w.node.dir, "NODE"}, {w.node.cgroup, "CGROUP"},
	} {
		path = strings.ReplaceAll(path, r[0], r[1])
	}
	path = uuidName.ReplaceAllString(path, "UUID")
	path = scratch.ReplaceAllString(path, "SCRATCH")
	path = hashName.ReplaceAllString(path, "HASH")
	path = numberName.ReplaceAllString(path, "N")
	path = cgroupPath.ReplaceAllString(path, "$1")
	return insideOf.ReplaceAllString(path, "$1/...")
}

func memory(proc string, at uint64, n int) []byte {
	f, err := os.Open(proc + "/mem")
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, n)
	n, _ = f.ReadAt(b, int64(at)) // as much as there is
	return b[:n]
}

// memoryString is the text at an address of a process.
func memoryString(proc string, at uint64) string {
	if at == 0 {
		return ""
	}
	text, _, _ := strings.Cut(string(memory(proc, at, 512)), "\x00")
	return text
}
