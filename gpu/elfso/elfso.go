// Package elfso answers three questions about shared libraries: by which name
// does the loader know one, what C library does it need, what C library is it.
//
// It reads what the loader reads, the dynamic section and what that refers to
// (System V ABI, "Dynamic Linking"; "Symbol Versioning" of the Linux Standard
// Base), and no more of it than real libraries have: a file may be anybody's, and
// debug/elf is not made for hostile ones.
package elfso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"crunch-oci/gpu/device"
)

// ErrNotLibrary says that a file is not a shared library for this machine.
var ErrNotLibrary = errors.New("not a shared library for x86-64")

// Info is what is known of a library.
type Info struct {
	// Soname is "libcuda.so.1"; "" if it has none.
	Soname string
	// Needs is the newest glibc version ("2.34") a symbol is wanted of; "" if
	// none is.
	Needs string
	// Provides is the newest glibc version it defines symbols of, which only
	// glibc itself does.
	Provides string
}

// What is looked at, at most.
const (
	maxSegments = 128
	maxDynamic  = 1024 // entries
	maxVersions = 4096 // entries of all version tables
	maxString   = 256  // bytes
)

// Types of segments and of entries of the dynamic section.
const (
	ptLoad, ptDynamic = 1, 2

	dtNull, dtStrtab, dtSoname = 0, 5, 14
	dtVerdef, dtVerdefnum      = 0x6ffffffc, 0x6ffffffd
	dtVerneed, dtVerneednum    = 0x6ffffffe, 0x6fffffff
)

var le = binary.LittleEndian

type segment struct{ address, offset, size uint64 }

type library struct {
	file    io.ReaderAt
	loads   []segment
	dynamic map[uint64]uint64
	seen    int // entries of version tables
}

// Read examines a library.
func Read(r io.ReaderAt) (Info, error) {
	info, err := read(r)
	if err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrNotLibrary, err)
	}
	return info, nil
}

func read(r io.ReaderAt) (info Info, err error) {
	l := library{file: r, dynamic: make(map[uint64]uint64)}
	if err := l.readHeaders(); err != nil {
		return info, err
	}
	if at, ok := l.dynamic[dtSoname]; ok {
		if info.Soname, err = l.text(at); err != nil {
			return info, err
		}
		if info.Soname == "" || strings.ContainsAny(info.Soname, "/\n") {
			return info, fmt.Errorf("soname %q", info.Soname)
		}
	}
	if info.Needs, err = l.needs(); err != nil {
		return info, err
	}
	info.Provides, err = l.provides()
	return info, err
}

func (l *library) at(offset uint64, n int) ([]byte, error) {
	if offset > 1<<62 {
		return nil, errors.New("an offset is too large")
	}
	b := make([]byte, n)
	if _, err := l.file.ReadAt(b, int64(offset)); err != nil {
		return nil, err
	}
	return b, nil
}

// readHeaders reads the segments and the dynamic section.
func (l *library) readHeaders() error {
	h, err := l.at(0, 64)
	if err != nil {
		return err
	}
	const shared, x86_64 = 3, 62
	if !bytes.HasPrefix(h, []byte("\x7fELF\x02\x01")) || le.Uint16(h[16:]) != shared || le.Uint16(h[18:]) != x86_64 {
		return errors.New("another kind of file")
	}
	size, n := uint64(le.Uint16(h[54:])), uint64(le.Uint16(h[56:]))
	if size != 56 || n > maxSegments {
		return errors.New("odd program headers")
	}
	var dynamic segment
	for i := range n {
		p, err := l.at(le.Uint64(h[32:])+i*size, int(size))
		if err != nil {
			return err
		}
		s := segment{le.Uint64(p[16:]), le.Uint64(p[8:]), le.Uint64(p[32:])}
		switch le.Uint32(p) {
		case ptLoad:
			l.loads = append(l.loads, s)
		case ptDynamic:
			dynamic = s
		}
	}
	for i := range min(dynamic.size/16, maxDynamic) {
		d, err := l.at(dynamic.offset+i*16, 16)
		if err != nil {
			return err
		}
		if le.Uint64(d) == dtNull {
			break
		}
		l.dynamic[le.Uint64(d)] = le.Uint64(d[8:])
	}
	return nil
}

// load reads what the loader would find at an address.
func (l *library) load(address uint64, n int) ([]byte, error) {
	for _, s := range l.loads {
		if address >= s.address && address-s.address < s.size {
			return l.at(s.offset+address-s.address, n)
		}
	}
	return nil, errors.New("an address is in no segment")
}

// text reads a string of the string table.
func (l *library) text(at uint64) (string, error) {
	for n := maxString; n > 0; n /= 2 { // it may be at the end of the file
		b, err := l.load(l.dynamic[dtStrtab]+at, n)
		if err == nil {
			if end := bytes.IndexByte(b, 0); end >= 0 {
				return string(b[:end]), nil
			}
			return "", errors.New("a string does not end")
		}
		if !errors.Is(err, io.EOF) {
			return "", err
		}
	}
	return "", io.ErrUnexpectedEOF
}

// entry reads an entry of a version table, of which there may not be too many.
func (l *library) entry(at uint64, n int) ([]byte, error) {
	if l.seen++; l.seen > maxVersions {
		return nil, errors.New("too many versions")
	}
	return l.load(at, n)
}

// needs reads which versions of others' symbols are wanted (Elf64_Verneed).
func (l *library) needs() (version string, err error) {
	at := l.dynamic[dtVerneed]
	for range l.dynamic[dtVerneednum] {
		need, err := l.entry(at, 16)
		if err != nil {
			return "", err
		}
		aux := at + uint64(le.Uint32(need[8:]))
		for range le.Uint16(need[2:]) {
			a, err := l.entry(aux, 16)
			if err != nil {
				return "", err
			}
			name, err := l.text(uint64(le.Uint32(a[8:])))
			if err != nil {
				return "", err
			}
			version = newest(version, name)
			aux += uint64(le.Uint32(a[12:]))
		}
		next := uint64(le.Uint32(need[12:]))
		if next == 0 {
			break
		}
		at += next
	}
	return version, nil
}

// provides reads which versions of its own symbols there are (Elf64_Verdef).
func (l *library) provides() (version string, err error) {
	at := l.dynamic[dtVerdef]
	for range l.dynamic[dtVerdefnum] {
		def, err := l.entry(at, 20)
		if err != nil {
			return "", err
		}
		// The first name is its own, others are what it replaces.
		a, err := l.entry(at+uint64(le.Uint32(def[12:])), 8)
		if err != nil {
			return "", err
		}
		name, err := l.text(uint64(le.Uint32(a)))
		if err != nil {
			return "", err
		}
		version = newest(version, name)
		next := uint64(le.Uint32(def[16:]))
		if next == 0 {
			break
		}
		at += next
	}
	return version, nil
}

// newest is the newer of a version and that of a symbol version "GLIBC_2.34".
func newest(have, symbol string) string {
	v, ok := strings.CutPrefix(symbol, "GLIBC_")
	if !ok || !device.AtLeast(v, "0") { // GLIBC_PRIVATE is none
		return have
	}
	if have == "" || device.AtLeast(v, have) {
		return v
	}
	return have
}
