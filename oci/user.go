package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// identity is a user as the kernel and the environment see it.
type identity struct {
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
	shell    string // "" if it has none to log in with
}

// unknownAccountError says that a name is in neither file.
type unknownAccountError struct {
	name  string
	group bool
}

func (e *unknownAccountError) Error() string {
	kind, file := "user", "/etc/passwd"
	if e.group {
		kind, file = "group", "/etc/group"
	}
	text := fmt.Sprintf("%s %q is not in the image's %s", kind, e.name, file)
	if strings.Trim(e.name, "0123456789") == "" {
		text += fmt.Sprintf(", and numbers of accounts go to %d", math.MaxInt32)
	}
	return text
}

// Is makes it an error of the request.
func (e *unknownAccountError) Is(target error) bool { return target == ErrRequest }

// withUser sets user and groups. The primary group is repeated among the
// supplementary ones, so that a process cannot drop it to get around a file's
// group permissions (CVE-2022-36109).
func withUser(who identity) Edit {
	return func(spec *specs.Spec) error {
		groups := slices.DeleteFunc(slices.Clone(who.groups), func(g uint32) bool { return g == who.gid })
		spec.Process.User = specs.User{
			UID: who.uid, GID: who.gid,
			AdditionalGids: slices.Concat([]uint32{who.gid}, groups),
		}
		return nil
	}
}

// lookUpUser resolves the request's or the image's user in the container's own
// /etc/passwd and /etc/group.
func lookUpUser(req Request) (identity, error) {
	spec := req.User
	if spec == "" {
		spec = req.Image.User
	}
	passwd, err := readInRoot(req.RootfsPath, "/etc/passwd")
	if err != nil {
		return identity{}, err
	}
	group, err := readInRoot(req.RootfsPath, "/etc/group")
	if err != nil {
		return identity{}, err
	}
	return resolveUser(spec, passwd, group)
}

// accountFileLimit bounds, in bytes, what is read of an image's account files.
const accountFileLimit = 16 << 20

// readInRoot reads a file of the container as a process in the container would
// find it: links, absolute ones included, never lead out of the root. A
// missing file is empty.
func readInRoot(root, name string) (string, error) {
	handle, err := pathrs.OpenInRoot(root, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		if _, rootErr := os.Stat(root); rootErr != nil {
			return "", fmt.Errorf("root directory: %w", rootErr)
		}
		return "", nil
	}
	if err != nil {
		return "", badRequest("open %s in the image: %w", name, err)
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return "", fmt.Errorf("%s in the image: %w", name, err)
	}
	// Looked at before it is opened for reading: a named pipe would block.
	if !info.Mode().IsRegular() {
		return "", badRequest("%s in the image is not a regular file", name)
	}
	if info.Size() > accountFileLimit {
		return "", badRequest("%s in the image is larger than %d bytes", name, accountFileLimit)
	}
	f, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open %s in the image: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, accountFileLimit))
	if err != nil {
		return "", fmt.Errorf("read %s in the image: %w", name, err)
	}
	return string(b), nil
}

// resolveUser finds the user named by spec, as Docker does: "user" or
// "user:group", each a name or a number; names win over numbers; a number need
// not be in the files; without a group, the user's groups from the group file
// are the supplementary ones; with one, there are none.
func resolveUser(spec, passwd, group string) (identity, error) {
	userArg, groupArg, hasGroup := strings.Cut(spec, ":")
	groupArg, _, _ = strings.Cut(groupArg, ":")
	if hasGroup && groupArg == "" {
		hasGroup = false
	}
	who := identity{home: "/"}
	login := "" // the matched account's name
	if userArg == "" {
		userArg = "0"
	}
	account, found := findAccount(passwd, userArg)
	switch uid, isNumber := parseID(userArg); {
	case found:
		who.uid, who.gid, login = account.uid, account.gid, account.name
		if account.home != "" {
			who.home = account.home
		}
		who.shell = loginShell(account.shell)
	case isNumber:
		who.uid = uid
	default:
		return identity{}, &unknownAccountError{name: userArg}
	}
	if !hasGroup {
		for g := range groups(group) {
			if login != "" && slices.Contains(g.members, login) && !slices.Contains(who.groups, g.gid) {
				who.groups = append(who.groups, g.gid)
			}
		}
		return who, nil
	}
	gid, isNumber := parseID(groupArg)
	byNumber := false
	for g := range groups(group) {
		if g.name == groupArg {
			who.gid = g.gid
			return who, nil
		}
		byNumber = byNumber || isNumber && g.gid == gid
	}
	if !byNumber && !isNumber {
		return identity{}, &unknownAccountError{name: groupArg, group: true}
	}
	who.gid = gid
	return who, nil
}

// parseID parses a user or group number. The kernel reserves the largest
// (-1 means "unchanged"); numbers above 2^31-1 are refused as Docker does.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= math.MaxInt32
}

type account struct {
	name     string
	uid, gid uint32
	home     string
	shell    string
}

// findAccount finds the first account of that name, else of that number.
// Lines that are not accounts (comments, NIS entries) are passed over: taken
// as account 0 they would make somebody root.
func findAccount(passwd, arg string) (account, bool) {
	number, isNumber := parseID(arg)
	var byNumber account
	found := false
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 3 || f[0] == "" {
			continue
		}
		uid, ok := parseID(f[2])
		a := account{name: f[0], uid: uid}
		// Lines that are written by hand often end early.
		if ok && len(f) > 3 {
			a.gid, ok = parseID(f[3])
		}
		if !ok {
			continue
		}
		if len(f) > 5 {
			a.home = f[5]
		}
		if len(f) > 6 {
			a.shell = f[6]
		}
		if a.name == arg {
			return a, true
		}
		if isNumber && uid == number && !found {
			byNumber, found = a, true
		}
	}
	return byNumber, found
}

type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

func groups(text string) func(yield func(groupEntry) bool) {
	return func(yield func(groupEntry) bool) {
		for line := range strings.Lines(text) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) < 3 || f[0] == "" {
				continue
			}
			gid, ok := parseID(f[2])
			if !ok {
				continue
			}
			g := groupEntry{name: f[0], gid: gid}
			if len(f) > 3 {
				g.members = strings.Split(f[3], ",")
			}
			if !yield(g) {
				return
			}
		}
	}
}
