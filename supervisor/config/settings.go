package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MaxStopGrace is the longest time between TERM and KILL: two minutes after its
// first signal a dispatcher gives the node up, and logs and output must be
// saved before that.
const MaxStopGrace = 20 * time.Second

// maxFinalTimeout is how long the blocks of a result are safe in Keep without a
// collection, by Arvados' default of BlobSigningTTL.
const maxFinalTimeout = 14 * 24 * time.Hour

// Site holds the settings of this node (see the README's table, or crunch-run
// check). Load returns it checked; the zero value is of no use.
type Site struct {
	// StoreDir holds the image store, shared by all containers of the node.
	StoreDir string
	// StoreBudget is how large the image store may grow.
	StoreBudget Amount
	// StoreInodes is how many files and directories it may hold; the amount's
	// "bytes" are inodes.
	StoreInodes Amount
	// RuntimeDir holds the state and bundle of each running container.
	RuntimeDir string
	// LocalDir holds the results of "crunch-run local" that have no other place.
	LocalDir string
	// UnfinishedDir holds results that the API could not be given.
	UnfinishedDir string
	// LockDir holds the run locks and the list of prices.
	LockDir string
	// CgroupBase is the control group below which containers get theirs: an
	// absolute path is below the hierarchy's mount point, a relative one below
	// the supervisor's own group in each hierarchy; "" means /crunch-run.
	CgroupBase string
	// Network is what a container gets when it gets a network: NetworkBridge,
	// NetworkHost, NetworkNone or "cni:NAME".
	Network string
	// Bridge is the name of the bridge's interface.
	Bridge string
	// Subnet is the bridge's IPv4 subnet; the zero value means to choose one that
	// the host has no routes to.
	Subnet netip.Prefix
	// Peers tells whether containers on the bridge reach each other.
	Peers bool
	// CNIConfigDir has the configurations of CNI networks, CNIPluginDirs their
	// plugins.
	CNIConfigDir  string
	CNIPluginDirs []string
	// Seccomp tells whether containers run under the default seccomp profile.
	Seccomp bool
	Confinement
	// PidsLimit bounds the processes and threads of a container; 0 means none.
	PidsLimit int64
	// StopGrace is the time between TERM and KILL when a container is stopped;
	// 0 means KILL at once.
	StopGrace time.Duration
	// FinalTimeout is how long a supervisor with a result waits for an API that
	// does not answer.
	FinalTimeout time.Duration
	// GPU is "auto", "cdi", "devices" or "off".
	GPU string
	// GPUDriverRoot is the directory below which the GPU driver is installed.
	GPUDriverRoot string
	// KeepCacheDir is the directory where the FUSE servers of all containers of
	// the node keep blocks; "" means a private one for each run.
	KeepCacheDir string
	// KeepMount is the command that serves the FUSE mount; empty means this
	// program's own.
	KeepMount []string

	described []Setting
}

// Setting is one line of Describe.
type Setting struct {
	Name, Value string
	// Origin is "default" or says where the value was found.
	Origin string
	// Meaning is one sentence for operators.
	Meaning string
}

// Describe lists all settings with their values and origins, in the order of
// the documentation.
func (s Site) Describe() []Setting { return slices.Clone(s.described) }

// A setting knows how to read itself from text and how to show itself. The
// text of a list is JSON or words separated by blanks.
type setting struct {
	name, usage, def string
	parse            func(s *Site, text string) error
	show             func(s *Site) string
}

// settings is the only list of site settings: flags, variables, file keys,
// checks and descriptions all come from it.
var settings = []setting{
	dirSetting("store-dir", "directory of the image store", "/var/lib/crunch-run", func(s *Site) *string { return &s.StoreDir }),
	{
		"store-budget", "size the image store may grow to: bytes, a size such as 50GiB, or a percentage of its file system; images not in use are removed, the least recently used first; an image larger than a given size is refused", "50%",
		func(s *Site, text string) (err error) { s.StoreBudget, err = parseAmount(text); return },
		func(s *Site) string { return s.StoreBudget.String() },
	},
	{
		"store-inodes", "files and directories the image store may hold: a number, or a percentage of its file system's inodes", "50%",
		func(s *Site, text string) (err error) { s.StoreInodes, err = parseCount(text); return },
		func(s *Site) string {
			if s.StoreInodes.Percent != 0 {
				return s.StoreInodes.String()
			}
			return strconv.FormatInt(s.StoreInodes.Bytes, 10)
		},
	},
	dirSetting("runtime-dir", "directory for the state of running containers", "/run/crunch-run", func(s *Site) *string { return &s.RuntimeDir }),
	dirSetting("local-dir", "directory for the results of crunch-run local that have no other place", "/var/lib/crunch-run-local", func(s *Site) *string { return &s.LocalDir }),
	dirSetting("unfinished-dir", "directory for results that the API could not be given (crunch-run unfinished)", "/var/lib/crunch-run-unfinished", func(s *Site) *string { return &s.UnfinishedDir }),
	dirSetting("lock-dir", "directory of the run locks; dispatchers expect the default", "/var/lock", func(s *Site) *string { return &s.LockDir }),
	{
		"cgroup-base", "control group for containers, a path below the hierarchy's mount point, or if relative below the supervisor's own group; empty: /crunch-run", "",
		func(s *Site, text string) error {
			if text != "" && (filepath.Clean(text) != text || text == "/" || !filepath.IsAbs(text) && !filepath.IsLocal(text) || text == ".") {
				return errors.New("must be empty or a clean path: /batch/containers is below the hierarchy's mount point, containers below the supervisor's own group")
			}
			s.CgroupBase = text
			return nil
		},
		func(s *Site) string { return s.CgroupBase },
	},
	networkSetting,
	bridgeSetting,
	subnetSetting,
	peersSetting,
	dirSetting("cni-config-dir", "directory with the configurations of CNI networks", "/etc/cni/net.d", func(s *Site) *string { return &s.CNIConfigDir }),
	cniPluginsSetting,
	{
		"seccomp", "whether containers run under the default seccomp profile: on or off", "on",
		func(s *Site, text string) (err error) { s.Seccomp, err = parseSwitch(text); return },
		func(s *Site) string { return showSwitch(s.Seccomp) },
	},
	initSetting,
	userNamespaceSetting,
	noNewPrivilegesSetting,
	appArmorSetting,
	selinuxSetting,
	selinuxMountSetting,
	umaskSetting,
	ulimitsSetting,
	shmSizeSetting,
	{
		"pids-limit", "processes and threads a container may have; 0: no limit", "32768",
		func(s *Site, text string) error {
			n, err := strconv.ParseInt(text, 10, 64)
			// The kernel's own limit (PID_MAX_LIMIT) is 4194304.
			if err != nil || n < 0 || n > 4194304 {
				return errors.New("must be a whole number from 0 to 4194304")
			}
			s.PidsLimit = n
			return nil
		},
		func(s *Site) string { return strconv.FormatInt(s.PidsLimit, 10) },
	},
	{
		"stop-grace", "time between TERM and KILL when a container is stopped, at most 20s; 0: KILL at once", "0s",
		func(s *Site, text string) error {
			d, err := time.ParseDuration(text)
			if err != nil || d < 0 || d > MaxStopGrace {
				return fmt.Errorf("must be a duration from 0s to %s, such as 5s", MaxStopGrace)
			}
			s.StopGrace = d
			return nil
		},
		func(s *Site) string { return s.StopGrace.String() },
	},
	{
		"final-timeout", "how long a supervisor with a result waits for an API that does not answer", "24h0m0s",
		func(s *Site, text string) error {
			d, err := time.ParseDuration(text)
			if err != nil || d < time.Minute || d > maxFinalTimeout {
				return fmt.Errorf("must be a duration from 1m to %s, such as 24h", maxFinalTimeout)
			}
			s.FinalTimeout = d
			return nil
		},
		func(s *Site) string { return s.FinalTimeout.String() },
	},
	{
		"gpu", "how containers get GPUs: auto or devices (found by crunch-run itself), cdi (by the node's CDI specifications) or off", "auto",
		func(s *Site, text string) error {
			if !slices.Contains([]string{"auto", "cdi", "devices", "off"}, text) {
				return errors.New("must be auto, cdi, devices or off")
			}
			s.GPU = text
			return nil
		},
		func(s *Site) string { return s.GPU },
	},
	dirSettingOrRoot("gpu-driver-root", "directory the GPU driver is installed in, / if it is installed on the node itself", "/", func(s *Site) *string { return &s.GPUDriverRoot }),
	{
		"keep-cache-dir", "directory in which the containers of the node share blocks of Keep; each adds its keep_cache_disk to what may be there; empty: a private one for each run, removed after it", "/var/cache/arvados/keep",
		func(s *Site, text string) error {
			if text != "" && (!filepath.IsAbs(text) || filepath.Clean(text) == "/") {
				return errors.New("must be empty, or an absolute path other than /")
			}
			if text != "" {
				text = filepath.Clean(text)
			}
			s.KeepCacheDir = text
			return nil
		},
		func(s *Site) string { return s.KeepCacheDir },
	},
	{
		"keep-mount-command", "command that serves the FUSE mount, such as arv-mount, as words or a JSON array; empty: this program", "",
		func(s *Site, text string) error {
			words, err := parseWords(text)
			if err != nil {
				return err
			}
			s.KeepMount = words
			return nil
		},
		func(s *Site) string {
			if len(s.KeepMount) == 0 {
				return ""
			}
			text, _ := json.Marshal(s.KeepMount)
			return string(text)
		},
	},
}

// dirSettingOrRoot is a dirSetting that may also be /.
func dirSettingOrRoot(name, usage, def string, field func(*Site) *string) setting {
	s := dirSetting(name, usage, def, field)
	s.parse = func(s *Site, text string) error {
		if !filepath.IsAbs(text) {
			return errors.New("must be an absolute path")
		}
		*field(s) = filepath.Clean(text)
		return nil
	}
	return s
}

func dirSetting(name, usage, def string, field func(*Site) *string) setting {
	return setting{
		name, usage, def,
		func(s *Site, text string) error {
			if !filepath.IsAbs(text) || filepath.Clean(text) == "/" {
				return errors.New("must be an absolute path other than /")
			}
			*field(s) = filepath.Clean(text)
			return nil
		},
		func(s *Site) string { return *field(s) },
	}
}

// envName is the variable of a setting.
func (d setting) envName() string {
	return "CRUNCH_RUN_" + strings.ToUpper(strings.ReplaceAll(d.name, "-", "_"))
}

func findSetting(name string) *setting {
	for i := range settings {
		if settings[i].name == name {
			return &settings[i]
		}
	}
	return nil
}

// parseWords reads a command: a JSON array of strings, or words without
// quoting.
func parseWords(text string) ([]string, error) {
	if !strings.HasPrefix(strings.TrimSpace(text), "[") {
		return append([]string(nil), strings.Fields(text)...), nil
	}
	var words []string
	if err := json.Unmarshal([]byte(text), &words); err != nil {
		return nil, fmt.Errorf("must be words or a JSON array of strings: %w", err)
	}
	if len(words) == 0 {
		return nil, nil
	}
	if words[0] == "" {
		return nil, errors.New("the command's first word is empty")
	}
	return words, nil
}
