package mount

import (
	"encoding/json"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseArgs(t *testing.T) {
	def := Options{Retries: 10, RefreshTime: 15 * time.Second, UnmountTimeout: 2 * time.Second}
	with := func(edit func(*Options)) Options {
		o := def
		edit(&o)
		return o
	}
	for line, want := range map[string]Options{
		// As the reference supervisor writes it (spec mounts-and-output.md section 8).
		"--foreground --read-write --storage-classes default,fast --crunchstat-interval=10 --allow-other --ram-cache --file-cache 268435456 --mount-by-pdh by_id --disable-event-listening --mount-by-id by_uuid /mnt": with(func(o *Options) {
			o.Mountpoint, o.ReadWrite, o.AllowOther = "/mnt", true, true
			o.StorageClasses = []string{"default", "fast"}
			o.StatsInterval, o.Cache, o.CacheBytes = 10*time.Second, RAMCache, 256<<20
			o.Dirs = []Dir{{Name: "by_id"}, {Name: "by_uuid", ByUUID: true}}
		}),
		"--foreground --disk-cache --disk-cache-dir /c --file-cache=1 --mount-by-id=by_id --read-write --read-only --retries=3 --refresh-time 0.5 /mnt --debug": with(func(o *Options) {
			o.Mountpoint, o.Cache, o.CacheDir, o.CacheBytes = "/mnt", DiskCache, "/c", 1
			o.Dirs = []Dir{{Name: "by_id", ByUUID: true}}
			o.Retries, o.RefreshTime, o.Debug = 3, 500*time.Millisecond, true
		}),
		"--unmount-timeout=8 --unmount /mnt": with(func(o *Options) { o.Mountpoint, o.Unmount, o.UnmountTimeout = "/mnt", true, 8*time.Second }),
		"--version":                          with(func(o *Options) { o.Version = true }),
		"-h":                                 with(func(o *Options) { o.Help = true }),
		"-d --custom --encoding utf-8 --directory-cache=1 --foreground --mount-by-pdh x /m": with(func(o *Options) {
			o.Mountpoint, o.Dirs, o.Debug = "/m", []Dir{{Name: "x"}}, true
		}),
		"--foreground --mount-by-pdh x --storage-classes a, /m": with(func(o *Options) {
			o.Mountpoint, o.Dirs, o.StorageClasses = "/m", []Dir{{Name: "x"}}, []string{"a"}
		}),
		// A container may have no storage classes, which is no reason not to run it.
		"--foreground --mount-by-pdh x --storage-classes= /m": with(func(o *Options) { o.Mountpoint, o.Dirs = "/m", []Dir{{Name: "x"}} }),
		"--foreground --mount-by-pdh x -- /m":                 with(func(o *Options) { o.Mountpoint, o.Dirs = "/m", []Dir{{Name: "x"}} }),
	} {
		got, err := ParseArgs(strings.Fields(line))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v %v, want\n%+v", line, got, err, want)
		}
	}
	for line, want := range map[string]string{
		"":                                     "no mount point given",
		"/mnt":                                 "only --foreground is supported",
		"--foreground /mnt":                    "nothing to mount",
		"--foreground --mount-by-pdh":          "--mount-by-pdh needs a value",
		"--foreground --mount-by-pdh a/b /mnt": "not a directory name",
		"--foreground --mount-by-pdh .. /mnt":  "not a directory name",
		"--foreground --mount-by-pdh a --mount-by-id a /mnt":   "used twice",
		"--foreground=yes /mnt":                                "--foreground takes no value",
		"--foreground --mount-home home /mnt":                  "--mount-home is not supported: give --mount-by-id NAME; projects are NAME/UUID",
		"--mount-by-id x /mnt --exec true":                     "--exec is not supported: run this program yourself",
		"--foreground --wat /mnt":                              `unknown option "--wat"`,
		"--foreground --wat=secret /mnt":                       `unknown option "--wat"`,
		"--foreground --mount-by-pdh a /mnt /mnt2":             `unexpected argument "/mnt2"`,
		"--foreground --mount-by-pdh a -x /mnt":                `unexpected argument "-x"`,
		"--foreground --file-cache 10% --mount-by-pdh a /m":    "a percentage is that of a file system",
		"--foreground --file-cache -1 --mount-by-pdh a /m":     "negative size",
		"--foreground --crunchstat-interval x --mount-by-id a": "invalid syntax",
		"--foreground --refresh-time NaN --mount-by-id a /m":   "not a number of seconds",
		"--foreground --retries -1 --mount-by-id a /m":         "invalid syntax",
		"--foreground --mount-tmp a --mount-tmp a /m":          "used twice",
	} {
		if _, err := ParseArgs(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", line, err, want)
		}
	}
}

func FuzzParseArgs(f *testing.F) {
	f.Add("--foreground\x00--mount-by-pdh=a\x00/m")
	f.Add("--file-cache\x00-9223372036854775808\x00--retries\x0099999999999999999999")
	f.Add("--refresh-time=1e308\x00--\x00--")
	f.Add("-h")
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseArgs(strings.Split(s, "\x00"))
		if err == nil && !o.Version && !o.Help && o.Mountpoint == "" {
			t.Errorf("%q: no mount point and no error", s)
		}
		if o.StatsInterval < 0 || o.RefreshTime < 0 || o.UnmountTimeout < 0 || o.CacheBytes < 0 && err == nil {
			t.Errorf("%q: negative value in %+v", s, o)
		}
	})
}

func TestParseMountinfo(t *testing.T) {
	const text = `24 30 0:22 / /proc rw,relatime shared:13 - proc proc rw
39 30 0:57 / /tmp/a\040b\134 rw,nosuid,nodev - fuse.arv-mount keep rw,user_id=0
40 30 0:58 / /x rw - fuse /dev/fuse rw
short
41 30 0:59 / /odd\08 rw opt1 opt2 - ext4 /dev/sda rw
`
	got, err := parseMountinfo(strings.NewReader(text))
	want := []mountInfo{{"0:22", "/proc", "proc", "24"}, {"0:57", `/tmp/a b\`, "fuse.arv-mount", "39"}, {"0:58", "/x", "fuse", "40"}, {"0:59", `/odd\08`, "ext4", "41"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add("39 30 0:57 / /tmp/a\\040b rw - fuse.x keep rw\n")
	f.Add("39 30 0:57 / /tmp\\ rw - \n - \n")
	f.Fuzz(func(t *testing.T, s string) {
		_, _ = parseMountinfo(strings.NewReader(s))
	})
}

func TestSignatureExpiry(t *testing.T) {
	const sig = "+A0123456789abcdef0123456789abcdef01234567@"
	for manifest, want := range map[string]int64{
		"": -1,
		". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo\n":                                               -1,
		". acbd18db4cc2f85cedef654fccc4a4d8+3+K@zzzzz" + sig + "6b16a2ef 0:3:foo\n":                    0x6b16a2ef,
		". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:a+A+A.\n./d 37b5+3" + sig + "00000010 0:3:foo\n":     0x10,
		". acbd18db4cc2f85cedef654fccc4a4d8+3+Rzbbbb-" + sig[2:] + "6b16a2ef 0:3:foo\n":                0x6b16a2ef,
		". acbd18db4cc2f85cedef654fccc4a4d8+3+R 0:3:+Rzbbbb\n":                                         -1,
		". acbd18db4cc2f85cedef654fccc4a4d8+3+A0123456789abcdef0123456789abcdef01234567@xyz 0:3:foo\n": -1,
	} {
		got := signatureExpiry(manifest)
		if want < 0 && !got.IsZero() || want >= 0 && got.Unix() != want {
			t.Errorf("%q: %v", manifest, got)
		}
	}
}

func TestKindOf(t *testing.T) {
	for name, want := range map[string][2]bool{
		"1f4b0bc7583c2a7f9102c395f4ffc5e3+45":  {true, false},
		"1f4b0bc7583c2a7f9102c395f4ffc5e3+":    {},
		"1f4b0bc7583c2a7f9102c395f4ffc5e3":     {},
		"1f4b0bc7583c2a7f9102c395f4ffc5e3+4x":  {},
		"1F4b0bc7583c2a7f9102c395f4ffc5e3+45":  {},
		"1f4b0bc7583c2a7f9102c395f4ffc5e3+4+A": {},
		"zzzzz-4zz18-0123456789abcde":          {false, true},
		"zzzzz-4zz18-0123456789abcdE":          {},
		"zzzzz-j7d0g-0123456789abcde":          {false, true},
		"zzzzz-tpzed-0123456789abcde":          {},
		"zzzzz-4zz18-0123456789abcdef":         {},
		"":                                     {},
	} {
		if pdh, uuid := kindOf(name); [2]bool{pdh, uuid} != want {
			t.Errorf("%q: %v %v", name, pdh, uuid)
		}
	}
}

// Records are JSON whatever is in them.
func TestRecordJSON(t *testing.T) {
	rec := Record{PortableDataHash: "d41d8cd98f00b204e9800998ecf8427e+0", ManifestText: "\u2028😀\x7f<",
		Fields: map[string]any{"z": json.Number("12345678901234567890"), "bad": func() {}}}
	var back map[string]any
	if err := json.Unmarshal(recordJSON(rec), &back); err != nil || back["manifest_text"] != rec.ManifestText {
		t.Errorf("%s %v", recordJSON(rec), err)
	}
	delete(rec.Fields, "bad")
	const want = `{
    "manifest_text": "\u2028\ud83d\ude00` + "\x7f" + `<",
    "portable_data_hash": "d41d8cd98f00b204e9800998ecf8427e+0",
    "uuid": "d41d8cd98f00b204e9800998ecf8427e+0",
    "z": 12345678901234567890
}
`
	if got := string(recordJSON(rec)); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestReport(t *testing.T) {
	var s stats
	before := s.sample(nil)
	s.ops[opRead].count.Store(16)
	s.ops[opRead].nanos.Store(12_345_000)
	s.ops[opFlush].count.Store(1)
	s.readBytes.Store(2048)
	now := s.sample(func() Counters {
		return Counters{Gets: 3, Puts: 1, Sent: 67108864, Received: 1024, Hits: 2, Misses: 1}
	})
	want := `crunchstat: keepcalls 1 put 3 get -- interval 10.0000 seconds 1 put 3 get
crunchstat: net:keep0 67108864 tx 1024 rx -- interval 10.0000 seconds 67108864 tx 1024 rx
crunchstat: keepcache 2 hit 1 miss -- interval 10.0000 seconds 2 hit 1 miss
crunchstat: blkio:0:0 0 write 2048 read -- interval 10.0000 seconds 0 write 2048 read
crunchstat: fuseops 0 write 16 read -- interval 10.0000 seconds 0 write 16 read
crunchstat: fuseop:read 16 count 0.012345 time -- interval 10.0000 seconds 16 count 0.012345 time
`
	for _, op := range strings.Fields("write destroy on_event getattr setattr lookup forget open release opendir readdir statfs create mkdir unlink rmdir rename") {
		want += "crunchstat: fuseop:" + op + " 0 count 0.000000 time -- interval 10.0000 seconds 0 count 0.000000 time\n"
	}
	want += "crunchstat: fuseop:flush 1 count 0.000000 time -- interval 10.0000 seconds 1 count 0.000000 time\n"
	if got := report(now, before, 10*time.Second); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReadySignal(t *testing.T) {
	for _, bad := range []string{"x", "0", "2", "-1"} {
		if _, err := readySignal(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// What has the number is closed by the signal, so w must not own it.
	fd, err := dupFD(w)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	signal, err := readySignal(fd)
	if err != nil {
		t.Fatal(err)
	}
	signal()
	if text, err := io.ReadAll(r); err != nil || string(text) != "ready\n" {
		t.Errorf("%q %v", text, err)
	}
}

func TestDying(t *testing.T) {
	if dying(uint32(os.Getpid())) {
		t.Error("we are alive")
	}
	if dying(0) || !dying(1<<22) {
		t.Error("a thread that does not exist is dead, an unknown one is not")
	}
}
