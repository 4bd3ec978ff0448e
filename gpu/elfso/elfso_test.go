package elfso_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/elfso"
	"crunch-oci/gpu/gputest"
)

func TestRead(t *testing.T) {
	lib := gputest.Library(t, "libx.so.3", "#include <stdio.h>\nint f(void) { return puts(\"x\"); }")
	info, err := elfso.Read(bytes.NewReader(lib))
	if err != nil || info.Soname != "libx.so.3" || !device.AtLeast(info.Needs, "2.2") || info.Provides != "" {
		t.Errorf("%+v, %v", info, err)
	}
	f, err := os.Open("/lib/x86_64-linux-gnu/libc.so.6")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libc, err := elfso.Read(f)
	if err != nil || !device.AtLeast(libc.Provides, info.Needs) || libc.Soname != "libc.so.6" {
		t.Errorf("%+v, %v", libc, err)
	}
	for name, data := range map[string][]byte{
		"empty": nil, "text": []byte("GROUP ( /lib/libc.so.6 )"), "cut off": lib[:100],
		"32-bit": append([]byte("\x7fELF\x01"), lib[5:]...),
	} {
		if _, err := elfso.Read(bytes.NewReader(data)); !errors.Is(err, elfso.ErrNotLibrary) {
			t.Errorf("%s: %v", name, err)
		}
	}
	odd := gputest.Library(t, "../../etc/passwd", "int f(void) { return 0; }")
	if _, err := elfso.Read(bytes.NewReader(odd)); !errors.Is(err, elfso.ErrNotLibrary) {
		t.Errorf("a soname that is a path: %v", err)
	}
}

// What is read agrees with what debug/elf reads, of every library of this
// machine.
func TestAgainstDebugELF(t *testing.T) {
	files, err := filepath.Glob("/lib/x86_64-linux-gnu/*.so*")
	if err != nil || len(files) < 20 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		f, err := elf.Open(name)
		if err != nil {
			continue // a linker script
		}
		want := elfso.Info{}
		if names, _ := f.DynString(elf.DT_SONAME); len(names) > 0 {
			want.Soname = names[0]
		}
		newer := func(to *string, symbol string) {
			if v, ok := strings.CutPrefix(symbol, "GLIBC_"); ok && device.AtLeast(v, "0") && (*to == "" || device.AtLeast(v, *to)) {
				*to = v
			}
		}
		if versions, err := f.DynamicVersions(); err == nil {
			for _, v := range versions {
				newer(&want.Provides, v.Name)
			}
		}
		if needs, err := f.DynamicVersionNeeds(); err == nil {
			for _, n := range needs {
				for _, d := range n.Needs {
					newer(&want.Needs, d.Dep)
				}
			}
		}
		_ = f.Close()
		r, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := elfso.Read(r)
		_ = r.Close()
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	seed, err := os.ReadFile("testdata/small.so")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		if info, err := elfso.Read(bytes.NewReader(data)); err == nil && bytes.ContainsAny([]byte(info.Soname), "/\n") {
			t.Errorf("soname %q", info.Soname)
		}
	})
}
