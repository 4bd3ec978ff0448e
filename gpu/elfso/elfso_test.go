package elfso_test

import (
	"bytes"
	"errors"
	"os"
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

func FuzzRead(f *testing.F) {
	f.Add(gputest.Library(f, "libx.so.3", "#include <stdio.h>\nint f(void) { return puts(\"x\"); }", "-s"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if info, err := elfso.Read(bytes.NewReader(data)); err == nil && bytes.ContainsAny([]byte(info.Soname), "/\n") {
			t.Errorf("soname %q", info.Soname)
		}
	})
}
