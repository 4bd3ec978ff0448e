package sshd_test

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/gateway"
	"crunch-oci/gateway/sshd"
)

func TestAuthVectors(t *testing.T) {
	d := newDoor(t, new(gateway.Deferred), gateway.SSHOptions{})
	for _, v := range vectors[[]struct{ User, Method, Result string }](t, "ssh_auth") {
		// The library tries "none" first, which always succeeds; paramiko does not.
		var err error
		if v.Method == "none" {
			var c *ssh.Client
			if c, err = d.login(v.User); err == nil {
				c.Close()
			}
		} else {
			err = paramiko(t, d, "auth", v.User, v.Method)
		}
		if (err == nil) != (v.Result == "success") {
			t.Errorf("%s as %s: %v, want %s", v.Method, v.User, err, v.Result)
		}
	}
}

type reply bool

func (r reply) String() string { return map[bool]string{true: "success", false: "failure"}[bool(r)] }

func TestSessionRequestVectors(t *testing.T) {
	_, d := box(t)
	ch, reqs, err := d.client().OpenChannel("session", nil)
	must(t, err)
	go ssh.DiscardRequests(reqs)
	payloads := vectors[map[string]string](t, "ssh_payloads")
	text := func(s ...string) []byte {
		var b []byte
		for _, s := range s {
			b = append(b, ssh.Marshal(struct{ S string }{s})...)
		}
		return b
	}
	raw := func(name string) []byte {
		b, err := hex.DecodeString(payloads[name])
		must(t, err)
		return b
	}
	for _, v := range vectors[[]struct{ Request, Reply string }](t, "ssh_session_requests") {
		name, _, _ := strings.Cut(v.Request, " ")
		payload := map[string][]byte{
			"env": text("FOO", "bar"), "signal": text("TERM"), "subsystem": text("sftp"), "x11-req": nil,
			"window-change": raw("window_change_120x50"), "pty-req": raw("pty_req_xterm256color_101x33_no_modes"),
			"exec": raw("exec_echo_ok"), "shell": nil,
		}[name]
		ok, err := ch.SendRequest(name, true, payload)
		if err != nil || reply(ok).String() != v.Reply {
			t.Errorf("%s: %s, %v; want %s", v.Request, reply(ok), err, v.Reply)
		}
	}
	out, err := io.ReadAll(ch)
	if err != nil || string(out) != "ok\r\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestGlobalAndChannelVectors(t *testing.T) {
	d := newDoor(t, new(gateway.Deferred), gateway.SSHOptions{})
	c := d.client()
	for _, v := range vectors[[]struct {
		Global, Reply, Channel, Message string
		Reason                          uint32
	}](t, "ssh_global_and_channels") {
		if v.Global != "" {
			ok, _, err := c.SendRequest(v.Global, true, ssh.Marshal(struct {
				Addr string
				Port uint32
			}{"", 0}))
			if err != nil || reply(ok).String() != v.Reply {
				t.Errorf("%s: %s, %v; want %s", v.Global, reply(ok), err, v.Reply)
			}
			continue
		}
		_, _, err := c.OpenChannel(v.Channel, nil)
		if e, ok := err.(*ssh.OpenChannelError); !ok || uint32(e.Reason) != v.Reason || e.Message != v.Message {
			t.Errorf("channel %s: %v", v.Channel, err)
		}
	}
}

func TestPayloadVectors(t *testing.T) {
	_, d := box(t)
	payloads := vectors[map[string]string](t, "ssh_payloads")
	ch, reqs, err := d.client().OpenChannel("session", nil)
	must(t, err)
	b, err := hex.DecodeString(payloads["pty_req_xterm256color_101x33_no_modes"])
	must(t, err)
	if ok, err := ch.SendRequest("pty-req", true, b); err != nil || !ok {
		t.Fatal(ok, err)
	}
	script := ssh.Marshal(struct{ S string }{"sh -c 'tty; stty size; echo $TERM; exit 3'"})
	if ok, err := ch.SendRequest("exec", true, script); err != nil || !ok {
		t.Fatal(ok, err)
	}
	status := make(chan string, 1)
	go func() {
		for q := range reqs {
			status <- q.Type + " " + hex.EncodeToString(q.Payload) + fmt.Sprint(q.WantReply)
		}
	}()
	out, err := io.ReadAll(ch)
	if want := "/dev/pts/0\r\n33 101\r\nxterm-256color\r\n"; err != nil || string(out) != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
	if got, want := <-status, "exit-status "+payloads["exit_status_3"]+"false"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestCommandSplitVectors(t *testing.T) {
	_, d := box(t)
	c := d.client()
	for i, v := range vectors[[]struct {
		Command, Error string
		Argv           []string
		DefaultShell   bool `json:"default_shell"`
	}](t, "command_split") {
		words, err := sshd.Split(v.Command)
		if v.DefaultShell {
			v.Argv = nil
		}
		if v.Error != "" && (err == nil || err.Error() != v.Error) || v.Error == "" && (err != nil || !slices.Equal(words, v.Argv)) {
			t.Errorf("%q: %q, %v", v.Command, words, err)
		}
		switch {
		case i%4 != 0: // all of them would take long
		case v.Error != "":
			if r := exec(t, c, v.Command, nil); r != (result{"", "error parsing supplied command: " + v.Error + "\n", 2}) {
				t.Errorf("%q: %+v", v.Command, r)
			}
		case v.DefaultShell:
			// There is no bash in this image.
			if r := exec(t, c, v.Command, strings.NewReader("echo in $0; exit 7\n")); r != (result{"in /bin/sh\n", "", 7}) {
				t.Errorf("%q: %+v", v.Command, r)
			}
		default:
			want := "<" + strings.Join(v.Argv, ">\n<") + ">\n"
			// A newline ends a comment and is a separator, whatever comes before.
			if r := exec(t, c, "printf '<%s>\\n'\n"+v.Command, nil); r != (result{want, "", 0}) {
				t.Errorf("%q: %+v, want %q", v.Command, r, want)
			}
		}
	}
}

func TestExitStatusVectors(t *testing.T) {
	ctr, d := box(t)
	must(t, os.WriteFile(fmt.Sprintf("/proc/%d/root/work/text", ctr.PID()), []byte("x"), 0o644))
	commands := map[string]string{
		"exit 0": "true", "exit 3": "sh -c 'exit 3'", "exit 255": "sh -c 'exit 255'",
		"killed by signal 9": "sh -c 'kill -9 $$'", "program not found in PATH": "nosuch", "program not executable": "/work/text",
	}
	c := d.client()
	for _, v := range vectors[[]struct {
		Child    string
		Required int
	}](t, "exit_status") {
		var r result
		switch command, ok := commands[v.Child]; {
		case ok:
			r = exec(t, c, command, nil)
			if v.Required > 125 && v.Required < 128 && r.stderr == "" {
				t.Errorf("%s: no message", v.Child)
			}
		case strings.HasPrefix(v.Child, "cannot be started"):
			for _, target := range []gateway.Target{new(gateway.Deferred), wire.Inside(endedContainer(t))} {
				r = exec(t, newDoor(t, target, gateway.SSHOptions{}).client(), "true", nil)
				if r.code != v.Required || r.stderr == "" {
					t.Errorf("%s: %+v", v.Child, r)
				}
			}
		case strings.HasPrefix(v.Child, "detached"):
			r.code = v.Required // see TestDetach
		default:
			t.Fatalf("unknown case %q", v.Child)
		}
		if r.code != v.Required {
			t.Errorf("%s: %+v, want %d", v.Child, r, v.Required)
		}
	}
}
