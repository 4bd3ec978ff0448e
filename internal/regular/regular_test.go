package regular

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// None of these is waited for: the test would not end.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(at("file"), []byte("text"), 0o600), os.Symlink("file", at("link")), os.Symlink("loop", at("loop")),
		os.Mkdir(at("dir"), 0o700), unix.Mkfifo(at("pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, c := range []struct {
		name  string
		flags int
		want  error
	}{
		{"file", os.O_RDONLY | unix.O_NOFOLLOW, nil},
		{"link", os.O_RDWR, nil},
		{"link", unix.O_NOFOLLOW, ErrNot},
		{"loop", os.O_RDONLY, unix.ELOOP},
		{"dir", os.O_RDONLY, ErrNot},
		{"dir", os.O_RDWR, ErrNot},
		{"pipe", os.O_RDONLY, ErrNot},
		{"pipe", os.O_RDWR, ErrNot},
		{"pipe", os.O_WRONLY, ErrNot},
		{"socket", os.O_RDONLY, ErrNot},
		{"/dev/zero", os.O_RDONLY, ErrNot},
		{"none", os.O_RDWR, os.ErrNotExist},
	} {
		path := c.name
		if !filepath.IsAbs(path) {
			path = at(path)
		}
		f, err := Open(path, c.flags)
		if !errors.Is(err, c.want) {
			t.Errorf("%s, flags %#x: %v, want %v", c.name, c.flags, err, c.want)
		}
		if err != nil {
			continue
		}
		if text, err := io.ReadAll(f); string(text) != "text" {
			t.Errorf("%s: %q, %v", c.name, text, err)
		}
		f.Close()
	}
}
