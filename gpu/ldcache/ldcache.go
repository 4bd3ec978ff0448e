// Package ldcache reads and extends the file in which the dynamic loader of
// glibc looks up libraries, /etc/ld.so.cache.
//
// A container that gets the node's driver libraries needs them in its loader's
// cache. Others run ldconfig for that, the node's in the image or the image's
// own; both have led out of containers (CVE-2024-0132, CVE-2025-23266). Here
// nothing of the image is executed: its cache is taken as the untrusted data it
// is, the libraries are added, and the result is written.
//
// The format is that of glibc's sysdeps/generic/dl-cache.h: the new one
// ("glibc-ld.so.cache1.1", since glibc 2.2), alone or behind an old one.
package ldcache

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrFormat says that something is not a loader cache that can be extended.
var ErrFormat = errors.New("not a loader cache of a known format")

const (
	magicOld = "ld.so-1.7.0"
	magicNew = "glibc-ld.so.cache1.1"

	oldHeader = 16 // magic, padding, number of entries
	oldEntry  = 12
	newHeader = 48
	newEntry  = 24

	// MaxSize bounds what is read, in bytes; caches have some 100 KB.
	MaxSize = 16 << 20

	extensionMagic  = 0xeaa42174
	tagHWCaps       = 1
	hwcapsExtension = 1 << 62 // the low half of Hwcap is an index of hwcaps names
	littleEndian    = 2
)

// Flags of entries: an ELF library of glibc 2 for x86-64.
const FlagX86_64 = 0x0303

// Entry is a library that the loader can find.
type Entry struct {
	Name      string // soname
	Path      string
	Flags     int32
	OSVersion uint32
	HWCap     uint64
}

// Cache is a loader cache.
type Cache struct {
	Entries []Entry
	// HWCaps are the names of glibc-hwcaps subdirectories that entries refer to.
	HWCaps []string
}

// Parse reads a cache.
func Parse(data []byte) (*Cache, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(data))
	}
	file := data
	if bytes.HasPrefix(data, []byte(magicOld)) {
		if len(data) < oldHeader {
			return nil, ErrFormat
		}
		n := uint64(binary.LittleEndian.Uint32(data[12:]))
		// The new format follows at the next multiple of 8 (glibc's ALIGN_CACHE).
		at := (oldHeader + n*oldEntry + 7) &^ 7
		if at > uint64(len(data)) {
			return nil, fmt.Errorf("%w: cut off", ErrFormat)
		}
		data = data[at:]
	}
	if !bytes.HasPrefix(data, []byte(magicNew)) || len(data) < newHeader {
		return nil, ErrFormat
	}
	if e := data[28]; e != 0 && e&3 != littleEndian {
		return nil, fmt.Errorf("%w: made for another byte order", ErrFormat)
	}
	n := uint64(binary.LittleEndian.Uint32(data[20:]))
	if newHeader+n*newEntry > uint64(len(data)) {
		return nil, fmt.Errorf("%w: cut off", ErrFormat)
	}
	c, strs := new(Cache), 0
	for i := range n {
		e := data[newHeader+i*newEntry:]
		name, ok1 := text(data, binary.LittleEndian.Uint32(e[4:]))
		path, ok2 := text(data, binary.LittleEndian.Uint32(e[8:]))
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("%w: entry %d", ErrFormat, i)
		}
		if strs += len(name) + len(path); strs > maxStrings {
			return nil, fmt.Errorf("%w: its strings overlap", ErrFormat)
		}
		c.Entries = append(c.Entries, Entry{
			Name: name, Path: path, Flags: int32(binary.LittleEndian.Uint32(e)),
			OSVersion: binary.LittleEndian.Uint32(e[12:]), HWCap: binary.LittleEndian.Uint64(e[16:]),
		})
	}
	return c, c.parseExtensions(file, data)
}

// parseExtensions reads the extensions: their places count from the beginning of
// the file, but the strings they refer to from that of the new format.
func (c *Cache) parseExtensions(data, table []byte) error {
	at := uint64(binary.LittleEndian.Uint32(table[32:]))
	if at == 0 {
		return nil
	}
	if at+8 > uint64(len(data)) || binary.LittleEndian.Uint32(data[at:]) != extensionMagic {
		return fmt.Errorf("%w: extensions", ErrFormat)
	}
	n := uint64(binary.LittleEndian.Uint32(data[at+4:]))
	if at+8+n*16 > uint64(len(data)) {
		return fmt.Errorf("%w: extensions", ErrFormat)
	}
	for i := range n {
		s := data[at+8+i*16:]
		if binary.LittleEndian.Uint32(s) != tagHWCaps {
			continue
		}
		from, size := uint64(binary.LittleEndian.Uint32(s[8:])), uint64(binary.LittleEndian.Uint32(s[12:]))
		if from+size > uint64(len(data)) || size%4 != 0 {
			return fmt.Errorf("%w: hwcaps", ErrFormat)
		}
		c.HWCaps = nil
		for j := from; j < from+size; j += 4 {
			name, ok := text(table, binary.LittleEndian.Uint32(data[j:]))
			if !ok {
				return fmt.Errorf("%w: hwcaps", ErrFormat)
			}
			c.HWCaps = append(c.HWCaps, name)
		}
	}
	return nil
}

const (
	// longest bounds the strings of a cache (PATH_MAX).
	longest = 4096
	// maxStrings bounds all of them together, in bytes: a small file of entries
	// that all refer to the same long string would otherwise fill the memory. In
	// honest files a name is at most the end of a path as well.
	maxStrings = 2 * MaxSize
)

// text returns the string at an offset, without its final NUL.
func text(data []byte, at uint32) (string, bool) {
	if uint64(at) >= uint64(len(data)) {
		return "", false
	}
	rest := data[at:]
	n := bytes.IndexByte(rest[:min(len(rest), longest)], 0)
	if n < 0 {
		return "", false
	}
	return string(rest[:n]), true
}

// Find returns the path the loader would use for a library, for an entry with
// these flags and without regard to glibc-hwcaps; "" if there is none.
func (c *Cache) Find(name string, flags int32) string {
	for _, e := range c.Entries {
		if e.Name == name && e.Flags == flags && e.HWCap == 0 {
			return e.Path
		}
	}
	return ""
}

// Add puts entries in, before others of the same name: the loader takes the
// first.
func (c *Cache) Add(entries ...Entry) {
	c.Entries = append(slices.Clone(entries), c.Entries...)
}

// Bytes is the file's content, in the new format.
func (c *Cache) Bytes() []byte {
	entries := slices.Clone(c.Entries)
	// The loader searches by halves, so the order must be its own: names
	// descending. Stable, and extensions first, as ldconfig sorts them.
	slices.SortStableFunc(entries, func(a, b Entry) int {
		if o := compareNames(b.Name, a.Name); o != 0 {
			return o
		}
		if o := cmp.Compare(b.Flags, a.Flags); o != 0 {
			return o
		}
		return cmp.Compare(extended(b), extended(a))
	})
	table := len(entries)*newEntry + newHeader
	var strs bytes.Buffer
	offsets := make(map[string]uint32)
	intern := func(s string) uint32 {
		at, ok := offsets[s]
		if !ok {
			at = uint32(table + strs.Len())
			offsets[s] = at
			strs.WriteString(s + "\x00")
		}
		return at
	}
	var out bytes.Buffer
	le := binary.LittleEndian
	for _, e := range entries {
		b := le.AppendUint32(nil, uint32(e.Flags))
		b = le.AppendUint32(b, intern(e.Name))
		b = le.AppendUint32(b, intern(e.Path))
		b = le.AppendUint32(b, e.OSVersion)
		out.Write(le.AppendUint64(b, e.HWCap))
	}
	var caps []byte
	for _, name := range c.HWCaps {
		caps = le.AppendUint32(caps, intern(name))
	}
	head := append([]byte(magicNew), make([]byte, newHeader-len(magicNew))...)
	le.PutUint32(head[20:], uint32(len(entries)))
	le.PutUint32(head[24:], uint32(strs.Len()))
	head[28] = littleEndian
	file := slices.Concat(head, out.Bytes(), strs.Bytes())
	if len(c.HWCaps) == 0 {
		return file
	}
	for len(file)%4 != 0 {
		file = append(file, 0)
	}
	at := uint32(len(file))
	le.PutUint32(file[32:], at)
	for _, v := range []uint32{extensionMagic, 1, tagHWCaps, 0, at + 8 + 16, uint32(len(caps))} {
		file = le.AppendUint32(file, v)
	}
	return append(file, caps...)
}

func extended(e Entry) int {
	if e.HWCap&hwcapsExtension != 0 {
		return 1
	}
	return 0
}

// compareNames orders names as the loader does (glibc's _dl_cache_libcmp): runs
// of digits count as numbers, and digits come after everything else.
func compareNames(a, b string) int {
	for a != "" {
		switch {
		case isDigit(a[0]) && b != "" && isDigit(b[0]):
			var x, y string
			x, a = number(a)
			y, b = number(b)
			// Without leading zeros the longer number is the greater.
			if o := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); o != 0 {
				return o
			}
		case isDigit(a[0]):
			return 1
		case b != "" && isDigit(b[0]):
			return -1
		case b == "":
			return 1
		case a[0] != b[0]:
			// The loader compares plain chars, which x86-64 has signed.
			return cmp.Compare(int8(a[0]), int8(b[0]))
		default:
			a, b = a[1:], b[1:]
		}
	}
	if b == "" {
		return 0
	}
	return -1
}

func number(s string) (digits, rest string) {
	i := 0
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	return strings.TrimLeft(s[:i], "0"), s[i:]
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
