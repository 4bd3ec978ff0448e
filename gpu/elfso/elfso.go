// Package elfso answers three questions about shared libraries: by which name
// does the loader know one, what C library does it need, what C library is it.
package elfso

import (
	"debug/elf"
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

// Read examines a library. The file may be anybody's: debug/elf is not made for
// hostile files, so that a panic in it is an error like others.
func Read(r io.ReaderAt) (info Info, err error) {
	defer func() {
		if p := recover(); p != nil {
			info, err = Info{}, fmt.Errorf("%w: %v", ErrNotLibrary, p)
		}
	}()
	f, err := elf.NewFile(r)
	if err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrNotLibrary, err)
	}
	defer f.Close()
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 || f.Type != elf.ET_DYN {
		return Info{}, ErrNotLibrary
	}
	// Absent parts of the dynamic section are no error.
	if names, err := f.DynString(elf.DT_SONAME); err == nil && len(names) > 0 {
		info.Soname = names[0]
	}
	if strings.ContainsAny(info.Soname, "/\x00\n") {
		return Info{}, fmt.Errorf("%w: soname %q", ErrNotLibrary, info.Soname)
	}
	if versions, err := f.DynamicVersions(); err == nil {
		for _, v := range versions {
			info.Provides = newest(info.Provides, v.Name)
		}
	}
	if needs, err := f.DynamicVersionNeeds(); err == nil {
		for _, n := range needs {
			for _, d := range n.Needs {
				info.Needs = newest(info.Needs, d.Dep)
			}
		}
	}
	return info, nil
}

// newest is the newer of a version and that of a symbol version "GLIBC_2.34".
func newest(have, symbol string) string {
	v, ok := strings.CutPrefix(symbol, "GLIBC_")
	if !ok || v == "PRIVATE" || !device.AtLeast(v, "0") {
		return have
	}
	if have == "" || device.AtLeast(v, have) {
		return v
	}
	return have
}
