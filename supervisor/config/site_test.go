package config

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func env(pairs ...string) func(string) (string, bool) {
	m := map[string]string{}
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		m[k] = v
	}
	return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
}

func siteFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaults(t *testing.T) {
	site, err := Load(Sources{DefaultFile: "/nonexistent/config.yml"})
	if err != nil {
		t.Fatal(err)
	}
	described := site.Describe()
	site.described = nil
	want := Site{
		StoreDir: "/var/lib/crunch-run", StoreBudget: Amount{Percent: 50}, StoreInodes: Amount{Percent: 50}, RuntimeDir: "/run/crunch-run", LocalDir: "/var/lib/crunch-run-local", UnfinishedDir: "/var/lib/crunch-run-unfinished", LockDir: "/var/lock",
		Network: "bridge", Bridge: "crunch0", Peers: true, CNIConfigDir: "/etc/cni/net.d", CNIPluginDirs: []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"},
		Seccomp: true, Confinement: Confinement{AppArmorProfile: "auto", Umask: 0o022, ShmSize: 64 << 20}, PidsLimit: 32768, FinalTimeout: 24 * time.Hour, GPU: "auto", GPUDriverRoot: "/", KeepCacheDir: "/var/cache/arvados/keep",
	}
	if !reflect.DeepEqual(site, want) {
		t.Errorf("got  %+v\nwant %+v", site, want)
	}
	for _, s := range described {
		if s.Origin != "default" || s.Meaning == "" {
			t.Errorf("%+v", s)
		}
	}
	if len(described) != len(settings) {
		t.Errorf("%d settings described", len(described))
	}
}

func TestPrecedence(t *testing.T) {
	file := siteFile(t, "# the site\nstore-dir: /file/store\nstop-grace: 3s\npids-limit: 100\nnetwork: 'cni:lab'\nseccomp: off\n\nkeep-mount-command: [my mount, --flag]\n")
	site, err := Load(Sources{
		Flags:       map[string]string{"store-dir": "/flag/store"},
		Lookup:      env("CRUNCH_RUN_STORE_DIR=/env/store", "CRUNCH_RUN_STOP_GRACE=4s", "CRUNCH_RUN_PIDS_LIMIT=", "CRUNCH_RUN_STORE_BUDGET=50GiB"),
		DefaultFile: file,
	})
	if err != nil {
		t.Fatal(err)
	}
	if site.StoreDir != "/flag/store" || site.StopGrace != 4*time.Second || site.PidsLimit != 100 || site.Network != "cni:lab" || site.Seccomp ||
		site.StoreBudget.Of(1) != 50<<30 || !reflect.DeepEqual(site.KeepMount, []string{"my mount", "--flag"}) {
		t.Errorf("%+v", site)
	}
	origins := map[string]string{
		"store-dir": "/flag/store flag -store-dir", "stop-grace": "4s CRUNCH_RUN_STOP_GRACE", "pids-limit": "100 " + file + ":4",
		"network": "cni:lab " + file + ":5", "seccomp": "off " + file + ":6", "store-budget": "50GiB CRUNCH_RUN_STORE_BUDGET",
		"keep-mount-command": `["my mount","--flag"] ` + file + ":8", "lock-dir": "/var/lock default",
	}
	for _, s := range site.Describe() {
		if want, ok := origins[s.Name]; ok && s.Value+" "+s.Origin != want {
			t.Errorf("%s: %s %s, want %s", s.Name, s.Value, s.Origin, want)
		}
	}
}

func TestWhichSiteFile(t *testing.T) {
	a, b, c := siteFile(t, "pids-limit: 1"), siteFile(t, "pids-limit: 2"), siteFile(t, "pids-limit: 3")
	for want, src := range map[int64]Sources{
		1: {DefaultFile: a},
		2: {DefaultFile: a, Lookup: env("CRUNCH_RUN_SITE_CONFIG=" + b)},
		3: {DefaultFile: a, Lookup: env("CRUNCH_RUN_SITE_CONFIG=" + b), Flags: map[string]string{"site-config": c}},
	} {
		if site, err := Load(src); err != nil || site.PidsLimit != want {
			t.Errorf("%d: %d %v", want, site.PidsLimit, err)
		}
	}
	_, err := Load(Sources{DefaultFile: a, Lookup: env("CRUNCH_RUN_SITE_CONFIG=/nonexistent.yml")})
	if err == nil || !strings.Contains(err.Error(), "CRUNCH_RUN_SITE_CONFIG: open /nonexistent.yml") {
		t.Error(err)
	}
	if _, err := Load(Sources{DefaultFile: t.TempDir()}); err == nil {
		t.Error("a directory is a site file")
	}
}

// The file is read by root, and may name a program for root to run.
func TestWhoMayWriteSiteFile(t *testing.T) {
	for want, change := range map[string]func(path string) error{
		"":                               func(path string) error { return os.Chmod(path, 0o664) },
		"everybody can write to it":      func(path string) error { return os.Chmod(path, 0o646) },
		"belongs to another user":        func(path string) error { return os.Chown(path, 12345, 0) },
		"config.yml: not a regular file": func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
	} {
		path := siteFile(t, "pids-limit: 7")
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		site, err := Load(Sources{DefaultFile: path})
		if want == "" {
			if err != nil || site.PidsLimit != 7 {
				t.Error(site.PidsLimit, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), want) || site.PidsLimit == 7 {
			t.Errorf("%d, %v, want %q", site.PidsLimit, err, want)
		}
	}
}

func TestBadSiteFiles(t *testing.T) {
	for text, want := range map[string][]string{
		"store-dir: /a\nstoredir: /b\n":                  {`:2: unknown setting "storedir"`},
		"pids-limit: 1\nseccomp: on\npids-limit: 2":      {":3: pids-limit is already set at", ":1"},
		"pids-limit: many\nstop-grace: 1h\n":             {`:1: pids-limit: "many": must be a whole number`, `:2: stop-grace: "1h": must be a duration`},
		"pids-limit: -1":                                 {"from 0 to 4194304"},
		"pids-limit: 1.5":                                {"whole number"},
		"stop-grace: -1s":                                {"must be a duration"},
		"stop-grace: 5":                                  {`"5": must be a duration`},
		"pids-limit:\n":                                  {":1: pids-limit: no value"},
		"pids-limit: {a: b}":                             {"plain value"},
		"keep-mount-command: [[a]]":                      {"plain value"},
		"keep-mount-command: ['']":                       {"first word is empty"},
		"pids-limit: [1, 2]":                             {"whole number"},
		"x: &a 1\nnetwork: *a":                           {"unknown setting", "plain value"},
		"- a\n- b":                                       {":1: must be a mapping"},
		"just text":                                      {":1: must be a mapping"},
		"pids-limit: 1\n  bad: [":                        {"line 2"},
		"pids-limit: 1\n---\npids-limit: 2":              {"more than one YAML document"},
		"store-dir: relative":                            {"absolute path"},
		"runtime-dir: /":                                 {"other than /"},
		"lock-dir: ''":                                   {"absolute path"},
		"store-dir: /run/crunch-run/store":               {"neither may be inside the other"},
		"runtime-dir: /var/lib/crunch-run/../crunch-run": {"neither may be inside the other"},
		"network: bridged":                               {"bridge, host, none or cni:NAME"},
		"network: 'cni:'":                                {"name of a CNI network"},
		"seccomp: maybe":                                 {"on or off"},
		"gpu: all":                                       {"auto, cdi, devices or off"},
		"cgroup-base: ../crunch":                         {"clean path"},
		"cgroup-base: /a/../..":                          {"clean path"},
		"store-budget: 0":                                {"more than 0"},
		"store-budget: 101%":                             {"1% to 100%"},
		"store-budget: 5 gallons":                        {"not a size"},
		"store-inodes: 0":                                {"more than 0"},
		"store-inodes: 1GB":                              {"whole number"},
		"store-inodes: 0%":                               {"1% to 100%"},
		"user-namespace: on":                             {"FIRST:COUNT"},
		"user-namespace: 1000:65536":                     {"at least 65536"},
		"user-namespace: 100000:1000":                    {"at least 65536"},
		"user-namespace: 2147483000:65536":               {"at least 65536"},
		"user-namespace: 100000:65536\nnetwork: host":    {"host's network"},
		"umask: 1022":                                    {"0000 to 0077"},
		"umask: 9":                                       {"octal"},
		"no-new-privileges: 2":                           {"on or off"},
		"apparmor-profile: ''":                           {"auto, unconfined or"},
		"user-namespace: 200000:65536:0":                 {"FIRST:COUNT:CONTAINERS"},
		"user-namespace: 200000:65536:40000":             {"FIRST:COUNT:CONTAINERS"},
		"user-namespace: 200000:65536:2:1":               {"FIRST:COUNT:CONTAINERS"},
		"selinux-label: container_t":                     {"user:role:type"},
		"selinux-label: 'u:r::s0'":                       {"user:role:type"},
		"selinux-mount-label: 'u:r:t:s0\",x'":            {"user:role:type"},
		"ulimits: nofile":                                {"is not a limit"},
		"ulimits: nofiles=1":                             {`"nofiles" is not one of as, core`},
		"ulimits: nofile=2:1":                            {"above the hard"},
		"ulimits: nofile=-1":                             {"is not a limit"},
		"ulimits: nofile=63:1024":                        {"must be at least 64"},
		"ulimits: stack=8192":                            {"must be at least 131072"},
		"ulimits: cpu=0":                                 {"must be at least 1"},
		"umask: '0100'":                                  {"from 0000 to 0077"},
		"ulimits: [core=0, core=1]":                      {"core is there twice"},
		"shm-size: 4095":                                 {"at least 4KiB"},
		"shm-size: 10%":                                  {"not a size"},
	} {
		_, err := Load(Sources{DefaultFile: siteFile(t, text)})
		if err == nil {
			t.Errorf("%q is accepted", text)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: %v\nlacks %q", text, err, w)
			}
		}
	}
	if _, err := Load(Sources{DefaultFile: siteFile(t, strings.Repeat("#", maxSiteFile+1))}); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Error(err)
	}
	if _, err := Load(Sources{DefaultFile: "/nonexistent", Flags: map[string]string{"bogus": "1"}}); err == nil {
		t.Error("an unknown flag is accepted")
	}
	if _, err := Load(Sources{DefaultFile: "/nonexistent", Lookup: env("CRUNCH_RUN_GPU=x")}); err == nil || !strings.Contains(err.Error(), `CRUNCH_RUN_GPU: gpu: "x"`) {
		t.Error(err)
	}
}

func TestEmptySiteFiles(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "{}", "null", "\n\n"} {
		if _, err := Load(Sources{DefaultFile: siteFile(t, text)}); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What Describe shows can be put into a site file.
func TestDescribeRoundTrip(t *testing.T) {
	first, err := Load(Sources{DefaultFile: "/nonexistent", Lookup: env("CRUNCH_RUN_KEEP_MOUNT=a b", "CRUNCH_RUN_CGROUP_BASE=/x/y", "CRUNCH_RUN_SECCOMP=no", "CRUNCH_RUN_STORE_BUDGET=1500MB",
		"CRUNCH_RUN_USER_NAMESPACE=200000:70000", "CRUNCH_RUN_INIT=on", "CRUNCH_RUN_UMASK=7", "CRUNCH_RUN_ULIMITS=core=0 memlock=1:unlimited", "CRUNCH_RUN_SHM_SIZE=1GB", "CRUNCH_RUN_SELINUX_LABEL=u:r:t:s0:c1,c2", "CRUNCH_RUN_APPARMOR_PROFILE=lab", "CRUNCH_RUN_NO_NEW_PRIVILEGES=on")})
	if err != nil {
		t.Fatal(err)
	}
	want := Confinement{Init: true, UserNamespaceFirst: 200000, UserNamespaceCount: 70000, NoNewPrivileges: true, AppArmorProfile: "lab", SELinuxLabel: "u:r:t:s0:c1,c2", Umask: 7, ShmSize: 1e9,
		Ulimits: []Ulimit{{"core", 0, 0}, {"memlock", 1, math.MaxUint64}}}
	if !reflect.DeepEqual(first.Confinement, want) {
		t.Errorf("%+v", first.Confinement)
	}
	var text strings.Builder
	for _, s := range first.Describe() {
		text.WriteString(s.Name + ": '" + s.Value + "'\n")
	}
	second, err := Load(Sources{DefaultFile: siteFile(t, text.String())})
	if err != nil {
		t.Fatalf("%v in\n%s", err, &text)
	}
	first.described, second.described = nil, nil
	if !reflect.DeepEqual(first, second) {
		t.Errorf("%+v\n%+v", first, second)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "1B": 1, "2K": 2000, "2KB": 2000, "2Ki": 2048, "2KiB": 2048, "1.5GiB": 3 << 29, "3 GB": 3e9, "7E": 7e18, "1Ti": 1 << 40,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %d %v", text, got, err)
		}
	}
	for _, text := range []string{"", "B", "-1", "1k", "1 Gib", "0x10", "1e3", "1..5", "9999999999999999999", "8EiB", "9.9EB", "1 G B", ".5G", "1GB "} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
	if got := (Amount{Percent: 50}).Of(100 << 40); got != 50<<40 {
		t.Error(got)
	}
}

func FuzzSiteFile(f *testing.F) {
	f.Add("store-dir: /a\nkeep-mount-command: [a, b]\n")
	f.Add("pids-limit: &x 1\nseccomp: *x\n? [a]\n: b\n")
	f.Fuzz(func(t *testing.T, text string) {
		values, err := readSiteFile("f", strings.NewReader(text))
		if err != nil {
			return
		}
		for name := range values {
			if findSetting(name) == nil {
				t.Errorf("unknown setting %q", name)
			}
		}
	})
}

// A misspelt variable is found, whatever else the environment holds.
func TestMisspeltVariables(t *testing.T) {
	load := func(environ ...string) error {
		_, err := Load(Sources{DefaultFile: "/nonexistent/config.yml", Environ: environ})
		return err
	}
	if err := load("HOME=/", "CRUNCH_RUN_PIDS_LIMIT=5", "CRUNCH_RUN_SITE_CONFIG=", "CRUNCH_RUN_READY_FD=3", "CRUNCH_RUN_UNSET="); err != nil {
		t.Error(err)
	}
	err := load("CRUNCH_RUN_PIDS_LIMITS=5")
	if err == nil || !strings.Contains(err.Error(), "CRUNCH_RUN_PIDS_LIMITS: no such setting") {
		t.Errorf("error %v", err)
	}
}
