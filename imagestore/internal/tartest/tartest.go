// Package tartest is a small language for writing tar archives in tests.
//
//	tartest.Tar(t, Dir("etc"), File("etc/motd", "hello").Owner(0, 4), Link("etc/issue", "etc/motd"))
package tartest

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"time"
)

// Epoch is the modification time of entries that say nothing else.
var Epoch = time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)

// Entry is one member of an archive, or raw bytes in its place.
type Entry struct {
	Header tar.Header
	Body   []byte
	Raw    []byte // instead of everything else
}

func entry(kind byte, name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: mode, ModTime: Epoch, Format: tar.FormatPAX}}
}

// File is a regular file with mode 0644.
func File(name, body string) Entry {
	e := entry(tar.TypeReg, name, 0o644)
	e.Body = []byte(body)
	e.Header.Size = int64(len(body))
	return e
}

// Dir is a directory with mode 0755.
func Dir(name string) Entry { return entry(tar.TypeDir, name, 0o755) }

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	e := entry(tar.TypeSymlink, name, 0o777)
	e.Header.Linkname = target
	return e
}

// Link is a hard link.
func Link(name, target string) Entry {
	e := entry(tar.TypeLink, name, 0o644)
	e.Header.Linkname = target
	return e
}

// Fifo is a named pipe.
func Fifo(name string) Entry { return entry(tar.TypeFifo, name, 0o600) }

// Char is a character device.
func Char(name string, major, minor int64) Entry { return device(tar.TypeChar, name, major, minor) }

// Block is a block device.
func Block(name string, major, minor int64) Entry { return device(tar.TypeBlock, name, major, minor) }

func device(kind byte, name string, major, minor int64) Entry {
	e := entry(kind, name, 0o660)
	e.Header.Devmajor, e.Header.Devminor = major, minor
	return e
}

// Kind is an entry of any type flag.
func Kind(kind byte, name string) Entry { return entry(kind, name, 0o644) }

// Raw puts bytes into the archive as they are.
func Raw(b []byte) Entry { return Entry{Raw: b} }

// Mode sets permission bits.
func (e Entry) Mode(m int64) Entry { e.Header.Mode = m; return e }

// Owner sets user and group.
func (e Entry) Owner(uid, gid int) Entry { e.Header.Uid, e.Header.Gid = uid, gid; return e }

// Time sets the modification time.
func (e Entry) Time(t time.Time) Entry { e.Header.ModTime = t; return e }

// Xattr adds an extended attribute.
func (e Entry) Xattr(name, value string) Entry { return e.Record("SCHILY.xattr."+name, value) }

// Record adds a PAX record.
func (e Entry) Record(key, value string) Entry {
	e.Header.PAXRecords = maps.Clone(e.Header.PAXRecords)
	if e.Header.PAXRecords == nil {
		e.Header.PAXRecords = make(map[string]string)
	}
	e.Header.PAXRecords[key] = value
	return e
}

// GNU writes the header in GNU format: long and non-UTF-8 names in records of
// their own.
func (e Entry) GNU() Entry { e.Header.Format = tar.FormatGNU; return e }

// TB is what is used of testing.TB.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Tar writes an archive.
func Tar(t TB, entries ...Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := Write(&buf, entries...); err != nil {
		t.Fatalf("write tar: %v", err)
	}
	return buf.Bytes()
}

// Write writes an archive to w.
func Write(w io.Writer, entries ...Entry) error {
	tw := tar.NewWriter(w)
	for _, e := range entries {
		if e.Raw != nil {
			if err := tw.Flush(); err != nil {
				return err
			}
			if _, err := w.Write(e.Raw); err != nil {
				return err
			}
			continue
		}
		h := e.Header
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := tw.Write(e.Body); err != nil {
			return err
		}
	}
	return tw.Close()
}
