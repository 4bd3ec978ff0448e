package mount

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"crunch-oci/internal/forkthread"
)

// shell runs a script in a directory and returns what it prints.
func shell(t *testing.T, dir, script string, args ...string) string {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-euc", script, "sh"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+t.TempDir(), "GIT_CONFIG_NOSYSTEM=1", "TMPDIR="+dir)
	var out []byte
	var err error
	forkthread.Do(func() { out, err = cmd.CombinedOutput() })
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// filesBelow reads all files below a directory.
func filesBelow(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	must(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(name)
		files[strings.TrimPrefix(name, dir+"/")] = string(data)
		return err
	}))
	return files
}

// Programs that do more than read and write get on with a new collection, and
// what they made is in Keep.
func TestPrograms(t *testing.T) {
	w := newWorld(t)
	w.mount("--mount-tmp", "tmp0", "--mount-tmp", "tmp1")
	dir := w.path("tmp0")
	src := t.TempDir()
	must(t, os.MkdirAll(src+"/deep/er", 0o755))
	for name, data := range map[string][]byte{
		"a": []byte("A\n"), "deep/b c": bytes.Repeat([]byte("0123456789abcdef"), 20_000), "deep/er/empty": nil, "deep/er/x.sh": []byte("#!/bin/sh\n"),
	} {
		must(t, os.WriteFile(src+"/"+name, data, 0o644))
		must(t, os.Chtimes(src+"/"+name, time.Unix(1e9, 0), time.Unix(1e9, 0)))
	}
	want := filesBelow(t, src)
	same := func(what, dir string) {
		t.Helper()
		got := filesBelow(t, dir)
		for name, data := range want {
			if got[name] != data {
				t.Errorf("%s: %s differs", what, name)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d files, want %d", what, len(got), len(want))
		}
	}
	t.Run("cp", func(t *testing.T) {
		shell(t, dir, `cp -a "$1" copy; cp -a copy again; cp --sparse=always copy/deep/b\ c sparse; cmp sparse copy/deep/b\ c; rm sparse`, src)
		same("cp -a", dir+"/again")
		if st, err := os.Stat(dir + "/again/a"); err != nil || st.ModTime().Unix() != 1e9 {
			t.Errorf("%v %v", st, err)
		}
	})
	t.Run("tar", func(t *testing.T) {
		shell(t, dir, `tar -C "$1" -cf t.tar .; mkdir untar; tar -C untar -xpf t.tar; tar -C untar --compare -f t.tar a deep >/dev/null || :; rm t.tar`, src)
		same("tar", dir+"/untar")
	})
	t.Run("git", func(t *testing.T) {
		repo := t.TempDir()
		shell(t, repo, `git init -q .; cp -r "$1"/. .; git add -A
			git -c user.name=x -c user.email=x@y commit -q -m one
			for i in 1 2 3; do echo $i >>a; git -c user.name=x -c user.email=x@y commit -q -a -m "$i"; done`, src)
		shell(t, dir, `git clone -q "$1" clone; cd clone; git fsck --strict; git checkout -q -b new HEAD~2
			echo more >>a; git add a; git -c user.name=x -c user.email=x@y commit -q -m more; git gc -q; git fsck; git status --porcelain >../status
			test ! -s ../status; rm ../status; git checkout -q HEAD~1`, repo)
		if got := filesBelow(t, dir+"/clone")["a"]; got != "A\n1\n" {
			t.Errorf("checked out %q", got)
		}
	})
	t.Run("sqlite", func(t *testing.T) {
		out := shell(t, dir, `sqlite3 db 'pragma journal_mode=delete; create table t(x integer primary key, y text);
			with recursive n(i) as (select 1 union all select i+1 from n where i<20000) insert into t select i, hex(randomblob(20)) from n;
			begin; update t set y="gone"; rollback; begin; delete from t where x%2; commit; create index i on t(y); vacuum;'
			for i in 1 2 3 4; do sqlite3 -cmd '.timeout 20000' db "insert into t(y) values('$i')" & done; wait
			sqlite3 db 'pragma integrity_check; select count(*) from t; select count(*) from t where y="gone"'`)
		if !strings.HasSuffix(out, "ok\n10004\n0\n") {
			t.Errorf("%q", out)
		}
	})
	t.Run("python", func(t *testing.T) {
		out := shell(t, dir, `python3 -c '
import tempfile, os, mmap, shutil
with tempfile.TemporaryFile(dir=".") as f:
    f.write(b"x" * 100000); f.seek(50000); f.write(b"yy"); f.seek(49999); assert f.read(4) == b"xyyx"
with tempfile.NamedTemporaryFile(dir=".") as f:
    f.write(b"z"); f.flush(); assert open(f.name, "rb").read() == b"z"
with tempfile.TemporaryDirectory(dir=".") as d:
    open(d + "/f", "w").write("hello"); shutil.move(d + "/f", d + "/g")
    with open(d + "/g", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        assert m[:] == b"hello"; m[0:1] = b"j"; m.flush()
    os.replace(d + "/g", d + "/h"); assert open(d + "/h").read() == "jello"
print("done", [n for n in os.listdir(".") if n.startswith("tmp")])
'`)
		if out != "done []\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("others", func(t *testing.T) {
		shell(t, dir, `seq 50000 >in; sort -R in >mixed; sort -n -S 100k -T . mixed -o mixed; cmp in mixed; split -n 7 in part.; cat part.* | cmp - in
			gzip -k in; gunzip -c in.gz | cmp - in
			sed -i s/7/x/ mixed; test $(grep -c x mixed) -gt 10000; install -m 755 -D in i/j/k; cmp in i/j/k
			dd if=in of=direct bs=64k oflag=direct status=none; cmp in direct; dd if=in of=synced bs=4k oflag=sync status=none; cmp in synced
			truncate -s 5M hole; dd if=in of=hole bs=4k seek=1000 conv=notrunc status=none; tar -cSf h.tar hole; mkdir h; tar -C h -xSf h.tar; cmp hole h/hole
			mkdir x
			printf 'Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n' >"$1/control"
			mkdir -p "$1/x/DEBIAN" "$1/x/usr"; mv "$1/control" "$1/x/DEBIAN"; cp in "$1/x/usr"; dpkg-deb -b "$1/x" x.deb >/dev/null; dpkg-deb -x x.deb x; cmp in x/usr/in
			flock lock sh -c 'if flock -n lock true; then exit 1; fi'
			for i in 1 2 3 4; do (for j in $(seq 100); do echo "$i" >>log; done) & done; wait; test $(wc -l <log) = 400
			rm -r in* mixed part.* direct synced hole h h.tar i x x.deb lock log`, t.TempDir())
	})
	t.Run("two collections", func(t *testing.T) {
		shell(t, dir, `mkdir -p m/d; echo f >m/d/f; mv m ../tmp1/; test ! -e m; test "$(cat ../tmp1/m/d/f)" = f; mv ../tmp1/m/d/f .; test "$(cat f)" = f; rm f`)
	})
	c := w.saved(dir)
	for _, name := range []string{"again", "untar"} {
		for file, data := range want {
			if got := content(t, c, name+"/"+file); got != data {
				t.Errorf("%s/%s is stored wrongly", name, file)
			}
		}
	}
	if data, err := os.ReadFile(dir + "/db"); err != nil || content(t, c, "db") != string(data) {
		t.Error("the database is stored wrongly")
	}
}

// notPOSIX are the tests of go-fuse's posixtest that a collection cannot pass,
// and why; doc/keep.md has the same list.
var notPOSIX = map[string]string{
	"SymlinkReadlink":  "no symbolic links",
	"OpenSymlinkRace":  "no symbolic links",
	"SetattrSymlink":   "no symbolic links",
	"Link":             "no hard links",
	"LinkUnlinkRename": "no hard links",
	"XAttr":            "no extended attributes",
	"XAttrLarge":       "no extended attributes",
	"FileBasic":        "wants mode 0755; every file has 0777, as arv-mount's",
	// It passes where locks are the file system's; on local ones it does not.
	"FcntlFlockLocksFile": "wants a process's record lock to exclude its own other one",
}

func TestPOSIX(t *testing.T) {
	_, dir := mountTmp(t)
	for name, fn := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if why := notPOSIX[name]; why != "" {
				t.Skip(why)
			}
			sub := filepath.Join(dir, name)
			must(t, os.Mkdir(sub, 0o755))
			fn(t, sub)
		})
	}
	for name := range notPOSIX {
		if posixtest.All[name] == nil {
			t.Errorf("there is no test %s", name)
		}
	}
}
