package imagestore

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "crunch-oci/imagestore/internal/tartest"
)

// Content that images really have and that unpackers have got wrong.

// capNetRaw is a file capability as the kernel keeps it (struct
// vfs_cap_data of linux/capability.h): revision 2, effective, CAP_NET_RAW.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// oddities is a layer of all kinds of entries, in PAX format.
func oddities(t *testing.T) []byte {
	long := strings.Repeat("n", 255)
	deep := strings.TrimSuffix(strings.Repeat("0123456789abcdef/", 30), "/")
	at := func(sec, nsec int64) time.Time { return time.Unix(sec, nsec) }
	es := []Entry{
		Dir("./"),
		Dir("zoo").Time(at(1_600_000_000, 123_456_789)),
		Dir("zoo/many"),
		Dir("zoo/modes"),
		File("zoo/modes/setuid", "s").Mode(0o4755),
		File("zoo/modes/setgid", "s").Mode(0o2755),
		File("zoo/modes/setuid of another", "s").Mode(0o6711).Owner(1000, 50),
		File("zoo/modes/none", "s").Mode(0),
		Dir("zoo/modes/sticky").Mode(0o1777),
		Dir("zoo/modes/setgid dir").Mode(0o2775).Owner(0, 8),
		File("zoo/modes/setgid dir/inside", "not of its group"),
		File("zoo/modes/huge ids", "s").Owner(3_000_000, 4_000_000_000),
		File("zoo/modes/nobody", "s").Owner(65534, 65534),
		Dir("zoo/links"),
		Dir("zoo/links/a"),
		Dir("zoo/links/b"),
		File("zoo/links/a/file", "one file").Mode(0o4711).Owner(7, 8),
		Link("zoo/links/b/same", "zoo/links/a/file"),
		Link("zoo/links/absolute", "/zoo/links/a/file"),
		Link("zoo/links/chain", "zoo/links/b/same"),
		Symlink("zoo/links/dangling", "/no/such/thing"),
		Symlink("zoo/links/owned", "../modes").Owner(12, 13).Time(at(1_500_000_000, 5)),
		Link("zoo/links/to a symlink", "zoo/links/owned"),
		Symlink("zoo/links/long", "/"+deep),
		Symlink("zoo/links/to itself", "to itself"),
		Dir("zoo/xattrs").Xattr("user.dir", "d"),
		File("zoo/xattrs/ping", "ELF").Mode(0o755).Xattr("security.capability", capNetRaw),
		File("zoo/xattrs/owned ping", "ELF").Owner(5, 6).Mode(0o755).Xattr("security.capability", capNetRaw),
		File("zoo/xattrs/user", "x").Xattr("user.a", "1").Xattr("user.b", "two").Xattr("user.zero", "a\x00b"),
		File("zoo/xattrs/trusted", "x").Xattr("trusted.mine", "t"),
		Dir("zoo/times"),
		File("zoo/times/before 1970", "x").Time(at(-1, 0)),
		File("zoo/times/long before 1970, with a fraction", "x").Time(at(-1_000_000_000, 250_000_000)),
		File("zoo/times/epoch", "x").Time(at(0, 0)),
		File("zoo/times/nanoseconds", "x").Time(at(1_234_567_890, 987_654_321)),
		File("zoo/times/beyond 2038", "x").Time(at(1<<33, 1)),
		Dir("zoo/names"),
		File("zoo/names/"+long, "255 bytes"),
		Dir("zoo/names/" + strings.Repeat("d", 120)),
		File("zoo/names/"+strings.Repeat("d", 120)+"/"+strings.Repeat("f", 200), "long in all"),
		File("zoo/names/\xff\xfe no UTF-8", "x"),
		Dir("zoo/names/Stra\xdfe"),
		File("zoo/names/Stra\xdfe/\xe9t\xe9", "Latin-1"),
		File("zoo/names/ünïcödé 日本", "x"),
		File("zoo/names/new\nline", "x"),
		File("zoo/names/ space ", "x"),
		File("zoo/names/-rf", "x"),
		File("zoo/names/back\\slash", "x"),
		File("zoo/names/*?[glob]", "x"),
		File("zoo/names/.wh", "no whiteout"),
		File("zoo/names/a.wh.b", "no whiteout"),
		Dir("zoo/special"),
		Fifo("zoo/special/pipe").Mode(0o622).Owner(1, 2),
		Char("zoo/special/null", 1, 3).Mode(0o666),
		Char("zoo/special/large", 4095, 1<<20-1),
		Block("zoo/special/disk", 8, 17).Owner(0, 6),
		Dir("zoo/sizes"),
		File("zoo/sizes/empty", ""),
		File("zoo/sizes/512", strings.Repeat("x", 512)),
		File("zoo/sizes/511", strings.Repeat("x", 511)),
		File("zoo/sizes/1 MiB and 1", strings.Repeat("y", 1<<20+1)),
		File("zoo/sizes/zeros", strings.Repeat("\x00", 100_000)),
		Dir("zoo/old"),
		File("zoo/old/hidden by opacity", "x"),
	}
	for i := range 40 {
		if i < 7 {
			es = append(es, Dir(fmt.Sprintf("zoo/many/%d", i)))
		}
		es = append(es, File(fmt.Sprintf("zoo/many/%d/%d", i%7, i), strings.Repeat("z", i*31)))
	}
	return Tar(t, es...)
}

// twice is a layer in which names come more than once.
func twice(t *testing.T) []byte {
	return Tar(t,
		Dir("twice"),
		File("twice/file", "first"),
		File("twice/file", "second, which counts"),
		Dir("twice/dir").Mode(0o700),
		File("twice/dir/kept", "x"),
		Dir("twice/dir").Mode(0o751).Owner(3, 4),
		File("twice/linked", "x"),
		Link("twice/link", "twice/linked"),
		File("twice/linked", "another file now"),
		Symlink("twice/changes", "file"),
		File("twice/changes", "its kind"),
	)
}

// later is a layer that changes oddities.
func later(t *testing.T) []byte {
	return Tar(t,
		Dir("zoo"),
		Dir("zoo/links"),
		File("zoo/links/.wh.a", ""), // its other names stay
		Dir("zoo/old"),
		File("zoo/old/.wh..wh..opq", ""),
		File("zoo/old/only this", "x"),
		File("zoo/special", "was a directory"),
		Dir("zoo/names"),
		Dir("zoo/names/.wh"), // was a file
		File("zoo/names/.wh.new\nline", ""),
		Symlink("zoo/sizes", "names"), // was a directory
		Dir("zoo/again"),
		File("zoo/again/x", "1"),
	)
}

// byGNUtar is a layer that GNU tar has made of real files: sparse ones, files
// with capabilities and attributes, links. The format is "posix" or "gnu". Sparse
// files are for few: umoci does not know those of gnu, docker and podman cannot
// give back those of posix.
func byGNUtar(t *testing.T, format string, sparse bool) []byte {
	t.Helper()
	dir := t.TempDir()
	top := filepath.Join(dir, "gnu-"+format)
	mustMkdir(t, top)
	script := `
		truncate -s 3M hole; printf head | dd of=hole conv=notrunc status=none
		printf tail | dd of=hole bs=1 seek=2500000 conv=notrunc status=none
		truncate -s 1M 'only a hole'
		mkdir -p d1/d2 d3; echo x >d1/d2/f; ln d1/d2/f d3/f; ln -s ../d3 d1/l
		cp /bin/true ping; chmod 4755 ping; chown 3:4 ping; chmod u+s ping
		echo "$(seq 300 | tr '\n' x)" >"` + strings.Repeat("long", 50) + `"
		mknod p p; mknod c c 1 5; touch -d @-77.5 old; touch -d @1700000000.123456789 precise`
	run(t, top, "sh", "-ec", script)
	args := []string{"tar", "--numeric-owner", "--format=" + format, "-C", dir, "-cf", filepath.Join(dir, "layer.tar")}
	if sparse {
		args = append(args, "--sparse")
	}
	if format == "posix" {
		run(t, top, "setcap", "cap_net_raw,cap_net_admin=ep", "ping")
		run(t, top, "setfattr", "-n", "user.note", "-v", "hello", "d1/d2/f")
		if sparse { // umoci drops it
			run(t, top, "setfattr", "-n", "user.empty", "d1/d2/f")
		}
		args = append(args, "--xattrs", "--xattrs-include=*")
	}
	run(t, dir, append(args, filepath.Base(top))...)
	b, err := os.ReadFile(filepath.Join(dir, "layer.tar"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// withGlobalHeader is a layer as git archive writes it.
func withGlobalHeader(t *testing.T) []byte {
	g := Entry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "0123456789abcdef"}, Format: tar.FormatPAX}}
	return Tar(t, g, Dir("git"), File("git/README", "x"))
}
