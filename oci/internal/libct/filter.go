package libct

import (
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// libcontainer has libseccomp compile a container's system call filter in the
// container's init, which takes as long as half of everything else. The filters
// of the profiles that containers usually have are therefore compiled ahead of
// time, and loaded by init itself (see filterLoader) at a point where nothing is
// left to be done but to execute the command. Any other profile goes the usual
// way.
//
//go:generate go test -tags seccomp -run TestFiltersAreLibseccomps -count=1 . -write-filters

// filters holds programs as runc's libcontainer hands them to the kernel (stub
// for unknown calls, then libseccomp's program): arrays of struct sock_filter
// (seccomp(2)), each named after what it was made from; see filterName.
//
//go:embed filters
var filters embed.FS

const filterDir = "filters"

// filterName is a digest of all that libcontainer makes a filter from. The flags
// with which it is loaded are no part of it.
func filterName(profile *configs.Seccomp) (string, error) {
	p := *profile
	p.Flags = nil
	text, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("system call filter: %w", err)
	}
	digest := sha256.Sum256(text)
	return hex.EncodeToString(digest[:]) + ".bpf", nil
}

// filter is a program and the flags of seccomp(2) with which it is loaded.
type filter struct {
	flags   uint32
	program []byte
}

// sockFilterSize is the size of a struct sock_filter in bytes.
const sockFilterSize = 8

// knownFlags are the flags that have a meaning for one filter by itself. The one
// that asks for a listener, for instance, has not.
var knownFlags = map[specs.LinuxSeccompFlag]uint32{
	specs.LinuxSeccompFlagLog:       unix.SECCOMP_FILTER_FLAG_LOG,
	specs.LinuxSeccompFlagSpecAllow: unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
}

// readyFilter finds the filter for a profile; nil if it has to be compiled.
func readyFilter(profile *configs.Seccomp) (*filter, error) {
	if profile == nil || !canSyncFilter() {
		return nil, nil
	}
	f := new(filter)
	for _, name := range profile.Flags {
		flag, ok := knownFlags[name]
		if !ok {
			return nil, nil
		}
		f.flags |= flag
	}
	name, err := filterName(profile)
	if err != nil {
		return nil, err
	}
	f.program, err = filters.ReadFile(filterDir + "/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("system call filter: %w", err)
	}
	return f, nil
}

// canSyncFilter tells whether the kernel can give one filter to all threads
// (Linux 3.17). It says so of the flag before it looks at the program, of which
// there is none here.
func canSyncFilter() bool {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, 0)
	return errno == unix.EFAULT
}

// readyMade marks the state of a container whose filter libcontainer does not
// load. Its state has the profile nevertheless, for processes that enter it
// later; without it none may, see Load.
const readyMade = "crunch-run.seccomp=ready-made"

// takeFilter takes the filter away from libcontainer if there is a ready one.
func (c *Container) takeFilter(config *configs.Config) error {
	f, err := readyFilter(config.Seccomp)
	if err != nil || f == nil {
		return err
	}
	c.filter, c.config, c.profile = f, config, config.Seccomp
	config.Seccomp = nil
	config.Labels = append(config.Labels, readyMade)
	return nil
}

// lacksProfile tells whether a container's state was written before its filter
// was loaded.
func lacksProfile(config configs.Config) bool {
	return config.Seccomp == nil && slices.Contains(config.Labels, readyMade)
}

// LoadFilter has a container's init, which waits since Start has returned, load
// its system call filter. It must be called before Release. lifeline is the
// creator's end, and theirs must have been closed.
func (c *Container) LoadFilter(lifeline io.ReadWriter) error {
	if c.filter == nil {
		return nil
	}
	if err := c.filter.send(lifeline); err != nil {
		return fmt.Errorf("load system call filter: %w", err)
	}
	c.config.Seccomp = c.profile
	if err := c.writeState(); err != nil {
		return fmt.Errorf("write the container's state: %w", err)
	}
	c.filter = nil
	return nil
}

// writeState replaces the state that libcontainer has written, for the one field
// that LoadFilter has changed.
func (c *Container) writeState() error {
	state, err := c.ctr.State()
	if err != nil {
		return err
	}
	text, err := json.Marshal(state)
	if err != nil {
		return err
	}
	name := filepath.Join(c.stateDir, "state.json")
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// loaded is init's answer when it has loaded a filter. Any other is an error's
// text.
const loaded = "loaded"

// send has the process at the other end of a lifeline load the filter.
func (f *filter) send(lifeline io.ReadWriter) error {
	// Little endian as these programs are, which are for one architecture.
	message := binary.LittleEndian.AppendUint32(nil, f.flags)
	message = binary.LittleEndian.AppendUint32(message, uint32(len(f.program)))
	if _, err := lifeline.Write(append(message, f.program...)); err != nil {
		return err
	}
	answer := make([]byte, 1<<10)
	n, err := lifeline.Read(answer)
	switch text := strings.TrimSpace(string(answer[:n])); {
	case text == loaded:
		return nil
	case text != "":
		return errors.New(text)
	case err == io.EOF:
		return errors.New("the container's init has ended")
	default:
		return err
	}
}
