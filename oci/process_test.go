package oci_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crunch-oci/oci"
)

// The environment is the image's and the request's, and nothing else.
func TestEnvironmentIsExact(t *testing.T) {
	t.Setenv("HOST_SECRET", "leaked")
	got := runScript(t, "env", func(r *oci.Request) {
		r.Command = []string{"env"} // a shell would add its own variables
		r.Image.Env = []string{"PATH=/bin", "IMG=from image", "BOTH=image", "NOVALUE", "=x", "EMPTY="}
		r.Env = map[string]string{"BOTH": "request", "LITERAL": `$HOME "$(id)" \n`, "LINES": "a\nb"}
	})
	want := strings.Join([]string{
		"PATH=/bin", "HOSTNAME=box", "IMG=from image", "BOTH=request", "EMPTY=", "LINES=a", "b",
		`LITERAL=$HOME "$(id)" \n`, "HOME=/root", "",
	}, "\n")
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestUsersAndGroups(t *testing.T) {
	for _, tc := range []struct {
		image, override string
		want            string // uid, gid, groups, HOME
	}{
		{"", "", "0 0 0 /root"},
		{"alice", "", "1000 1000 1000 44 50 /home/alice"},
		{"1000", "", "1000 1000 1000 44 50 /home/alice"},
		{"alice:video", "", "1000 44 44 /home/alice"},
		{"4242:4343", "", "4242 4343 4343 /"},
		{"4242", "", "4242 0 0 /"},
		{"alice", "0:0", "0 0 0 /root"},
	} {
		t.Run(tc.image+"/"+tc.override, func(t *testing.T) {
			got := runScript(t, `echo $(id -u) $(id -g) $(id -G) $HOME`, func(r *oci.Request) {
				r.Image.User, r.User = tc.image, tc.override
			})
			if strings.TrimSpace(got) != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// A process that is not root owns its streams, so that it can open them by
// name, as many images do with log files that are links to /dev/stderr.
func TestStreamsBelongToTheUser(t *testing.T) {
	req := newRequest(t, newID(), "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin")
	req.Image.User = "alice"
	b, status := run(t, req, strings.NewReader("in\n"))
	if status.Code != 0 || b.stdout.String() != "out\nin\n" || b.stderr.String() != "err\n" {
		t.Errorf("exit %v, stdout %q, stderr %q", status, b.stdout, b.stderr)
	}
}

func TestEntrypoint(t *testing.T) {
	for _, tc := range []struct {
		name                     string
		entrypoint, cmd, command []string
		want                     string
	}{
		{"entrypoint and command", []string{"echo", "e"}, []string{"default"}, []string{"c"}, "e c\n"},
		{"entrypoint and image's CMD", []string{"echo", "e"}, []string{"default"}, nil, "e default\n"},
		{"empty entrypoint", []string{""}, []string{"default"}, []string{"echo", "c"}, "c\n"},
		{"command alone", nil, []string{"default"}, []string{"echo", "c"}, "c\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := runScript(t, "", func(r *oci.Request) {
				r.Image.Entrypoint, r.Image.Cmd, r.Command = tc.entrypoint, tc.cmd, tc.command
			})
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestWorkingDirectory(t *testing.T) {
	for _, tc := range []struct{ image, cwd, want string }{
		{"", "", "/"},
		{"/work", "", "/work"},
		{"/work", ".", "/work"},
		{"/work", "sub/dir", "/work/sub/dir"},
		{"/work", "/tmp", "/tmp"},
		{"", "/made/for/this", "/made/for/this"},
		{"/work", "../../..", "/"},
		{"work", "", "/work"},
		{"/link", "", "/work"},
	} {
		t.Run(tc.image+"+"+tc.cwd, func(t *testing.T) {
			got := runScript(t, "readlink /proc/self/cwd", func(r *oci.Request) {
				r.Image.WorkingDir, r.Cwd = tc.image, tc.cwd
				must(t, os.Symlink("/work", filepath.Join(r.RootfsPath, "link")))
			})
			if got != tc.want+"\n" {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// What is wrong with the request is told apart from what is wrong with the
// node, and says what.
func TestBadRequests(t *testing.T) {
	link := func(root, to, name string) {
		must(t, os.RemoveAll(filepath.Join(root, name)))
		must(t, os.Symlink(to, filepath.Join(root, name)))
	}
	for _, tc := range []struct {
		name string
		edit func(*oci.Request)
		text string
	}{
		{"cwd is a file", func(r *oci.Request) { r.Cwd = "/etc/passwd" }, `working directory "/etc/passwd": /etc/passwd is not a directory`},
		{"cwd below a file", func(r *oci.Request) { r.Cwd = "/etc/passwd/sub" }, "/etc/passwd is not a directory"},
		{"cwd is a link that leads nowhere", func(r *oci.Request) { link(r.RootfsPath, "/no/where", "nowhere"); r.Cwd = "/nowhere" }, "/nowhere is a link that leads nowhere"},
		{"cwd below a link that leads nowhere", func(r *oci.Request) { link(r.RootfsPath, "/no/where", "nowhere"); r.Cwd = "/nowhere/a/b" }, "/nowhere is a link that leads nowhere"},
		{"cwd is a link to itself", func(r *oci.Request) { link(r.RootfsPath, "loop", "loop"); r.Cwd = "/loop" }, `working directory "/loop"`},
		{"cwd has too long a name", func(r *oci.Request) { r.Cwd = "/" + strings.Repeat("x", 300) }, "file name too long"},
		{"cwd in the kernel's files", func(r *oci.Request) { r.Cwd = "/sys/new/dir" }, `working directory "/sys/new/dir": /sys/new cannot be made`},
		{"cwd below a read-only mount", func(r *oci.Request) {
			r.Mounts = []oci.Mount{{Source: os.TempDir(), Target: "/in", ReadOnly: true}}
			r.Cwd = "/in/new/dir"
		}, "/in/new cannot be made"},
		{"cwd with NUL", func(r *oci.Request) { r.Cwd = "/a\x00b" }, "NUL"},
		{"unknown user", func(r *oci.Request) { r.User = "nobody-here" }, `user "nobody-here" is not in the image's /etc/passwd`},
		{"unknown group", func(r *oci.Request) { r.Image.User = "alice:nogroup" }, `group "nogroup"`},
		{"uid too large", func(r *oci.Request) { r.User = "4294967295" }, "numbers of accounts go to 2147483647"},
		{"no command", func(r *oci.Request) { r.Command = nil }, "no command"},
		{"empty command word", func(r *oci.Request) { r.Command = []string{""} }, "no command"},
		{"argument with NUL", func(r *oci.Request) { r.Command = []string{"echo", "a\x00"} }, "NUL"},
		{"variable name with =", func(r *oci.Request) { r.Env = map[string]string{"A=B": ""} }, `"A=B"`},
		{"empty variable name", func(r *oci.Request) { r.Env = map[string]string{"": "x"} }, "not valid"},
		{"variable with NUL", func(r *oci.Request) { r.Env = map[string]string{"A": "\x00"} }, "NUL"},
		{"relative mount target", func(r *oci.Request) { r.Mounts = []oci.Mount{{Source: "/tmp", Target: "x"}} }, `"x"`},
		{"mount over the root", func(r *oci.Request) { r.Mounts = []oci.Mount{{Source: "/tmp", Target: "/x/.."}} }, "below the root"},
		{"mount in /proc", func(r *oci.Request) { r.Mounts = []oci.Mount{{Source: "/tmp", Target: "/proc/sys"}} }, "belongs to the kernel"},
		{"mount in /sys", func(r *oci.Request) { r.Mounts = []oci.Mount{{Source: "/tmp", Target: "/work/../sys"}} }, "belongs to the kernel"},
		{"two mounts at one target", func(r *oci.Request) {
			r.Mounts = []oci.Mount{{Source: "/tmp", Target: "/x"}, {Source: "/tmp", Target: "/x/"}}
		}, "two mounts at /x"},
		{"unknown network", func(r *oci.Request) { r.Network = "bridge" }, "bridge"},
		{"image's link into /proc", func(r *oci.Request) {
			link(r.RootfsPath, "/proc/sys", "fw")
			r.Mounts = []oci.Mount{{Source: os.TempDir(), Target: "/fw/x"}}
		}, "the image's files are in the way"},
		{"image's file below a mount", func(r *oci.Request) { r.Mounts = []oci.Mount{{Source: os.TempDir(), Target: "/etc/passwd/x"}} }, "the image's files are in the way"},
		{"image's file in place of a directory", func(r *oci.Request) { r.Mounts = []oci.Mount{{Source: os.TempDir(), Target: "/etc/passwd"}} }, "the image's files are in the way"},
		{"image's circular links", func(r *oci.Request) {
			link(r.RootfsPath, "loop", "loop")
			r.Mounts = []oci.Mount{{Source: os.TempDir(), Target: "/loop/x"}}
		}, "the image's files are in the way"},
		{"image's file in place of /proc", func(r *oci.Request) {
			must(t, os.RemoveAll(filepath.Join(r.RootfsPath, "proc")))
			write(t, filepath.Join(r.RootfsPath, "proc"), "x")
		}, "the image's files are in the way"},
		{"image's link in place of /sys", func(r *oci.Request) { link(r.RootfsPath, "etc", "sys") }, "the image's files are in the way"},
		{"host name with a space", func(r *oci.Request) { r.Hostname = "a b" }, "host name"},
		{"long host name", func(r *oci.Request) { r.Hostname = strings.Repeat("a", 65) }, "64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := newRequest(t, newID(), "true")
			tc.edit(&req)
			_, err := create(t, req, nil)
			if !errors.Is(err, oci.ErrRequest) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v; want ErrRequest with %q", err, tc.text)
			}
			noCgroups(t)
		})
	}
}

func TestNodeErrorsAreNotRequestErrors(t *testing.T) {
	req := newRequest(t, newID(), "true")
	req.Mounts = []oci.Mount{{Source: filepath.Join(t.TempDir(), "missing"), Target: "/work"}}
	if _, err := create(t, req, nil); err == nil || errors.Is(err, oci.ErrRequest) {
		t.Errorf("missing mount source: %v", err)
	}
	req = newRequest(t, newID(), "true")
	req.RootfsPath += "-missing"
	if _, err := create(t, req, nil); err == nil || errors.Is(err, oci.ErrRequest) {
		t.Errorf("missing root: %v", err)
	}
}

// The image's account files are the container's, not the host's, wherever its
// links point to.
func TestAccountFilesStayInTheRoot(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	write(t, outside, "evil:x:0:0::/:/bin/sh\n")
	for _, link := range []string{outside, "../../../../../../../../.." + outside} {
		req := newRequest(t, newID(), "true")
		passwd := filepath.Join(req.RootfsPath, "etc/passwd")
		must(t, os.Remove(passwd))
		must(t, os.Symlink(link, passwd))
		req.User = "evil"
		if spec, err := oci.NewSpec(req); !errors.Is(err, oci.ErrRequest) {
			t.Errorf("link to %s: %v, user %+v", link, err, spec)
		}
	}
	// An absolute link within the root is followed within the root.
	req := newRequest(t, newID(), "true")
	must(t, os.Rename(filepath.Join(req.RootfsPath, "etc"), filepath.Join(req.RootfsPath, "real-etc")))
	must(t, os.Symlink("/real-etc", filepath.Join(req.RootfsPath, "etc")))
	req.User = "alice"
	spec, err := oci.NewSpec(req)
	if err != nil || spec.Process.User.UID != 1000 {
		t.Errorf("%v, %+v", err, spec)
	}
	// A pipe must not block us.
	req = newRequest(t, newID(), "true")
	passwd := filepath.Join(req.RootfsPath, "etc/passwd")
	must(t, os.Remove(passwd))
	mkfifo(t, passwd)
	if _, err := oci.NewSpec(req); !errors.Is(err, oci.ErrRequest) {
		t.Errorf("pipe as /etc/passwd: %v", err)
	}
}

func TestMounts(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"ro", "rw", "deep"} {
		must(t, os.Mkdir(filepath.Join(dir, sub), 0o777))
		must(t, os.Chmod(filepath.Join(dir, sub), 0o777))
		write(t, filepath.Join(dir, sub, "name"), sub+"\n")
	}
	file := filepath.Join(dir, "file")
	write(t, file, "a file\n")
	outside := t.TempDir()
	got := runScript(t, `
		cat /keep/name /keep/rw/name /keep/rw/very/deep/name /a/file /link/to/name
		touch /keep/x 2>/dev/null && echo "read-only is writable"
		echo x 2>/dev/null > /a/file && echo "read-only file is writable"
		touch /keep/rw/written
	`+"ls /dev/shm; cat /etc/hostname", func(r *oci.Request) {
		must(t, os.Symlink(outside, filepath.Join(r.RootfsPath, "link")))
		must(t, os.MkdirAll(filepath.Join(dir, "ro/rw"), 0o777))
		// In any order.
		r.Mounts = []oci.Mount{
			{Source: filepath.Join(dir, "deep"), Target: "/keep/rw/very/deep"},
			{Source: filepath.Join(dir, "rw"), Target: "/keep/rw"},
			{Source: filepath.Join(dir, "ro"), Target: "/keep/", ReadOnly: true},
			{Source: file, Target: "/a/file", ReadOnly: true},
			{Source: filepath.Join(dir, "rw"), Target: "/dev/shm"},
			{Source: file, Target: "/etc/hostname"},
			// A link in the image that leads out of it ends in it.
			{Source: filepath.Join(dir, "ro"), Target: "/link/to", ReadOnly: true},
		}
	})
	want := "ro\nrw\ndeep\na file\nro\nname\nvery\nwritten\na file\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("made outside of the root: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "rw/written")); err != nil {
		t.Error(err)
	}
}

func TestEtcFiles(t *testing.T) {
	got := runScript(t, "hostname; cat /etc/hostname /etc/resolv.conf; grep -c box /etc/hosts; grep -c localhost /etc/hosts", func(r *oci.Request) {
		// A link such as systemd-resolved makes, to a file that is missing.
		must(t, os.Symlink("../run/stub-resolv.conf", filepath.Join(r.RootfsPath, "etc/resolv.conf")))
	})
	if got != "box\nbox\n1\n2\n" {
		t.Errorf("got %q", got)
	}
	host, err := os.ReadFile("/etc/resolv.conf")
	must(t, err)
	name, err := os.Hostname()
	must(t, err)
	got = runScript(t, "hostname; cat /etc/resolv.conf", func(r *oci.Request) { r.Network, r.Hostname = oci.NetworkHost, "" })
	if want := name + "\n" + string(host); got != want {
		t.Errorf("with the host's network: got %q, want %q", got, want)
	}
	// Whoever mounts /etc gets their own.
	dir := t.TempDir()
	write(t, filepath.Join(dir, "hosts"), "mine\n")
	got = runScript(t, "cat /etc/hosts; ls /etc", func(r *oci.Request) {
		r.Mounts = []oci.Mount{{Source: dir, Target: "/etc", ReadOnly: true}}
	})
	if got != "mine\nhosts\n" {
		t.Errorf("with own /etc: %q", got)
	}
}

func TestRlimits(t *testing.T) {
	limits, err := oci.HostRlimits()
	must(t, err)
	i := slices.IndexFunc(limits, func(l specRlimit) bool { return l.Type == "RLIMIT_NOFILE" })
	if i < 0 || limits[i].Soft != limits[i].Hard || limits[i].Soft == 0 {
		t.Fatalf("%+v", limits)
	}
	limits[i].Soft, limits[i].Hard = 77, 88
	got := runScript(t, "ulimit -Sn; ulimit -Hn", func(r *oci.Request) { r.Rlimits = limits })
	if got != "77\n88\n" {
		t.Errorf("got %q", got)
	}
}
