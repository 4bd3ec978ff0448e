package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Confinement are the settings that hold for the processes of every container.
type Confinement struct {
	// NoNewPrivileges keeps set-user-ID programs from raising privileges.
	NoNewPrivileges bool
	// AppArmorProfile is "auto", "unconfined", or a profile's name.
	AppArmorProfile string
	// SELinuxLabel is the processes', SELinuxMountLabel that of the file systems
	// made for a container; "" is none.
	SELinuxLabel, SELinuxMountLabel string
	// UserNamespaceFirst and UserNamespaceCount are the host's user and group ids
	// that containers get for theirs; a count of 0 means no user namespace. If
	// UserNamespaceRanges is not 0, there are so many ranges, which follow each other,
	// and each container has one for itself; else all have the same.
	UserNamespaceFirst, UserNamespaceCount, UserNamespaceRanges uint32
	// Init makes a small init the first process of containers.
	Init bool
	// Umask is the file mode creation mask of commands.
	Umask uint32
	// Ulimits are resource limits other than the usual ones.
	Ulimits []Ulimit
	// ShmSize is the size of /dev/shm in bytes.
	ShmSize int64
}

// Ulimit is one resource limit (getrlimit(2)).
type Ulimit struct {
	// Name is as in "RLIMIT_NOFILE", without the prefix, in small letters.
	Name string
	// Soft and Hard are the limits; math.MaxUint64 is none.
	Soft, Hard uint64
}

// minIDs is how many ids a container needs at least: 65534 is nobody's.
const minIDs = 65536

var userNamespaceSetting = setting{
	"user-namespace", "user and group ids of the host that containers get as their 0, 1, ..., as FIRST:COUNT, such as 200000:65536, or FIRST:COUNT:CONTAINERS, by which so many containers have a range of their own; off: the same ids as on the host", "off",
	func(s *Site, text string) error {
		s.UserNamespaceFirst, s.UserNamespaceCount, s.UserNamespaceRanges = 0, 0, 0
		if text == "off" || text == "false" { // which YAML makes of off
			return nil
		}
		parts := strings.Split(text, ":")
		var numbers [3]uint64
		ok := len(parts) == 2 || len(parts) == 3
		for i := 0; ok && i < len(parts); i++ {
			var err error
			numbers[i], err = strconv.ParseUint(parts[i], 10, 31)
			ok = err == nil && numbers[i] > 0
		}
		first, count, ranges := numbers[0], numbers[1], numbers[2]
		// Accounts and system services have the lower ids; 2^31 and more are not
		// ids everywhere.
		if !ok || first < minIDs || count < minIDs || first+count*max(ranges, 1) > math.MaxInt32 {
			return fmt.Errorf("must be off, or FIRST:COUNT with both at least %d, or FIRST:COUNT:CONTAINERS; nobody on this node may have any of these ids (see /etc/subuid), and there are less than 2^31", minIDs)
		}
		s.UserNamespaceFirst, s.UserNamespaceCount, s.UserNamespaceRanges = uint32(first), uint32(count), uint32(ranges)
		return nil
	},
	func(s *Site) string {
		if s.UserNamespaceCount == 0 {
			return "off"
		}
		text := fmt.Sprintf("%d:%d", s.UserNamespaceFirst, s.UserNamespaceCount)
		if s.UserNamespaceRanges > 0 {
			text += fmt.Sprintf(":%d", s.UserNamespaceRanges)
		}
		return text
	},
}

var initSetting = setting{
	"init", "whether a small init is the first process of containers, which reaps processes and passes signals on to the command: on or off", "off",
	func(s *Site, text string) (err error) { s.Init, err = parseSwitch(text); return },
	func(s *Site) string { return showSwitch(s.Init) },
}

var noNewPrivilegesSetting = setting{
	"no-new-privileges", "whether programs are kept from raising their privileges (set-user-ID and the like): on or off", "off",
	func(s *Site, text string) (err error) { s.NoNewPrivileges, err = parseSwitch(text); return },
	func(s *Site) string { return showSwitch(s.NoNewPrivileges) },
}

var appArmorSetting = setting{
	"apparmor-profile", "AppArmor profile of containers: auto (Docker's, where there is AppArmor), unconfined, or the name of a loaded one", "auto",
	func(s *Site, text string) error {
		if text == "" || strings.TrimSpace(text) != text || hasControl(text) {
			return errors.New("must be auto, unconfined or the name of a loaded profile")
		}
		s.AppArmorProfile = text
		return nil
	},
	func(s *Site) string { return s.AppArmorProfile },
}

var selinuxSetting = setting{
	"selinux-label", "SELinux label of containers' processes, such as system_u:system_r:container_t:s0", "",
	func(s *Site, text string) error { return parseLabel(&s.SELinuxLabel, text) },
	func(s *Site) string { return s.SELinuxLabel },
}

var selinuxMountSetting = setting{
	"selinux-mount-label", "SELinux label of the file systems made for containers, such as system_u:object_r:container_file_t:s0", "",
	func(s *Site, text string) error { return parseLabel(&s.SELinuxMountLabel, text) },
	func(s *Site) string { return s.SELinuxMountLabel },
}

// parseLabel checks the form user:role:type[:level]. The level may contain
// colons and commas; a quote would end the mount option it is put into.
func parseLabel(to *string, text string) error {
	parts := strings.SplitN(text, ":", 4)
	if text != "" && (len(parts) < 3 || slices.Contains(parts, "") || strings.ContainsAny(text, `" `) || hasControl(text)) {
		return errors.New("must be a label of the form user:role:type or user:role:type:level")
	}
	*to = text
	return nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f })
}

var umaskSetting = setting{
	"umask", "file mode creation mask of commands, in octal", "0022",
	func(s *Site, text string) error {
		n, err := strconv.ParseUint(text, 8, 32)
		// With a bit of the owner's, a command could not use its own files or
		// directories.
		if err != nil || n > 0o077 {
			return errors.New("must be an octal number from 0000 to 0077: commands need the files they make")
		}
		s.Umask = uint32(n)
		return nil
	},
	func(s *Site) string { return fmt.Sprintf("%04o", s.Umask) },
}

var ulimitsSetting = setting{
	"ulimits", "resource limits other than the usual ones, such as core=0 nofile=1024:65536 memlock=unlimited", "",
	func(s *Site, text string) error {
		words, err := parseWords(text)
		if err != nil {
			return err
		}
		var all []Ulimit
		for _, w := range words {
			l, err := parseUlimit(w)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(all, func(o Ulimit) bool { return o.Name == l.Name }) {
				return fmt.Errorf("%s is there twice", l.Name)
			}
			all = append(all, l)
		}
		s.Ulimits = all
		return nil
	},
	func(s *Site) string {
		var words []string
		for _, l := range s.Ulimits {
			words = append(words, l.String())
		}
		return strings.Join(words, " ")
	},
}

// ulimitNames are the limits the runtime knows.
var ulimitNames = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

// smallestUlimits are limits below which a container cannot be started, or no
// program runs in it: its files are opened, or its stack is filled with arguments,
// under them. Without a word here each container would fail.
var smallestUlimits = map[string]uint64{"as": 16 << 20, "cpu": 1, "data": 1 << 20, "nofile": 64, "nproc": 1, "stack": 128 << 10}

const unlimited = "unlimited"

func parseUlimit(word string) (l Ulimit, err error) {
	bad := fmt.Errorf("%q is not a limit such as nofile=1024:65536 or memlock=unlimited", word)
	name, values, ok := strings.Cut(word, "=")
	if !ok {
		return l, bad
	}
	if !slices.Contains(ulimitNames, name) {
		return l, fmt.Errorf("%q is not one of %s", name, strings.Join(ulimitNames, ", "))
	}
	value := func(text string) (uint64, bool) {
		if text == unlimited {
			return math.MaxUint64, true
		}
		n, err := strconv.ParseUint(text, 10, 63)
		return n, err == nil
	}
	soft, hard, two := strings.Cut(values, ":")
	if !two {
		hard = soft
	}
	l.Name = name
	var ok1, ok2 bool
	if l.Soft, ok1 = value(soft); !ok1 {
		return l, bad
	}
	if l.Hard, ok2 = value(hard); !ok2 {
		return l, bad
	}
	if l.Soft > l.Hard {
		return l, fmt.Errorf("%q: the soft limit is above the hard one", word)
	}
	if least := smallestUlimits[name]; l.Soft < least {
		return l, fmt.Errorf("%q: must be at least %d, with less no program runs", word, least)
	}
	return l, nil
}

// String returns what the setting reads.
func (l Ulimit) String() string {
	show := func(n uint64) string {
		if n == math.MaxUint64 {
			return unlimited
		}
		return strconv.FormatUint(n, 10)
	}
	return l.Name + "=" + show(l.Soft) + ":" + show(l.Hard)
}

var shmSizeSetting = setting{
	"shm-size", "size of /dev/shm in containers, which counts as their memory", "64MiB",
	func(s *Site, text string) error {
		n, err := ParseSize(text)
		if err != nil {
			return err
		}
		if n < 4096 {
			return errors.New("must be at least 4KiB")
		}
		s.ShmSize = n
		return nil
	},
	func(s *Site) string { return Amount{Bytes: s.ShmSize}.String() },
}
