package network

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the kernel knows of rules made by the older iptables, which nftables does
// not show (linux/netfilter_ipv4/ip_tables.h, linux/netfilter/x_tables.h).
const (
	iptGetInfo    = 64 // IPT_SO_GET_INFO
	iptGetEntries = 65 // IPT_SO_GET_ENTRIES

	ipInfoSize  = 84  // struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size
	entryHeader = 112 // struct ipt_entry: struct ipt_ip of 84 bytes, nfcache, offsets, comefrom, counters
)

// legacyObstacle is obstacle for the older iptables' filter table, if there is one.
func legacyObstacle(p packetPath, bridge string) *Obstacle {
	// The file lists the tables that are there already; asking for another would
	// make it.
	names, err := os.ReadFile("/proc/net/ip_tables_names")
	if err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
		return nil
	}
	info, entries, err := legacyTable("filter")
	if err != nil {
		return nil
	}
	closed, known := judgeLegacy(info, entries, p.legacy, bridge)
	if !closed || known {
		return nil
	}
	return &Obstacle{Chain: p.iptables + " of iptables-legacy", Why: "drops by default", Effect: p.effect, Advice: iptablesAdvice(p, "iptables-legacy", bridge)}
}

// legacyTable reads a table as the kernel has it.
func legacyTable(name string) (info, entries []byte, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	info = make([]byte, ipInfoSize)
	copy(info, name)
	if err := getsockopt(fd, iptGetInfo, info); err != nil {
		return nil, nil, err
	}
	size := binary.NativeEndian.Uint32(info[80:])
	const prefix = 40 // struct ipt_get_entries: name[32], size, and padding
	reply := make([]byte, prefix+int(size))
	copy(reply, name)
	binary.NativeEndian.PutUint32(reply[32:], size)
	if err := getsockopt(fd, iptGetEntries, reply); err != nil {
		return nil, nil, err
	}
	return info, reply[prefix:], nil
}

func getsockopt(fd, option int, b []byte) error {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_IP, uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// judgeLegacy tells whether the policy of a hook's chain is to drop, and
// whether a rule of the table names the bridge as the interface that packets
// come in by.
func judgeLegacy(info, entries []byte, hook int, bridge string) (closed, known bool) {
	if len(info) < ipInfoSize {
		return false, false
	}
	policyAt := int(binary.NativeEndian.Uint32(info[56+4*hook:]))
	for at := 0; at+entryHeader <= len(entries); {
		e := entries[at:]
		name, _, _ := bytes.Cut(e[16:32], []byte{0}) // ipt_ip.iniface
		target := int(binary.NativeEndian.Uint16(e[88:]))
		next := int(binary.NativeEndian.Uint16(e[90:]))
		if next < entryHeader || target < entryHeader || at+target+36 > len(entries) {
			break
		}
		if string(name) == bridge {
			known = true
		}
		// A standard target is a size, an empty name of 30 bytes, and a verdict:
		// -1 is NF_DROP.
		if at == policyAt && e[target+2] == 0 {
			closed = int32(binary.NativeEndian.Uint32(e[target+32:])) == -1
		}
		at += next
	}
	return closed, known
}
