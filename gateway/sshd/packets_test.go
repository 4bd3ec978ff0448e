package sshd_test

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"crunch-oci/gateway"
)

// FuzzHandshake talks to a server that has not let the client in yet.
func FuzzHandshake(f *testing.F) {
	f.Add([]byte("SSH-2.0-x\r\n\x00\x00\x00\x0c\x0a\x14\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\n\n\n"))
	d := newDoor(f, new(gateway.Deferred), gateway.SSHOptions{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("unix", d.path)
		must(t, err)
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, _ = c.Write(b)
		_ = c.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
			t.Fatal("the server does not answer and does not leave")
		}
	})
}

// A client that is in and sends what no client sends: requests and channels with
// random content, in random order. Its server lives on.
func TestStrangePackets(t *testing.T) {
	_, d := box(t)
	random := rand.New(rand.NewPCG(1, 2))
	bytes := func() []byte {
		b := make([]byte, random.IntN(64))
		for i := range b {
			b[i] = byte(random.IntN(256))
		}
		if random.IntN(2) == 0 && len(b) > 4 {
			copy(b, []byte{0, 0, 0, byte(random.IntN(len(b)))})
		}
		return b
	}
	kinds := []string{"pty-req", "window-change", "env", "signal", "exec", "shell", "subsystem", "exit-status", "eow@openssh.com", "break", ""}
	for range 40 {
		c := d.client()
		var channels []ssh.Channel
		for range 30 {
			switch random.IntN(4) {
			case 0:
				kind := []string{"session", "direct-tcpip", "x11", "auth-agent@openssh.com", string(bytes())}[random.IntN(5)]
				ch, reqs, err := c.OpenChannel(kind, bytes())
				if err == nil {
					go ssh.DiscardRequests(reqs)
					channels = append(channels, ch)
				}
			case 1:
				_, _, _ = c.SendRequest(kinds[random.IntN(len(kinds))], false, bytes())
			default:
				if len(channels) == 0 {
					continue
				}
				ch := channels[random.IntN(len(channels))]
				switch random.IntN(8) {
				case 0:
					_ = ch.CloseWrite()
				case 1:
					_ = ch.Close()
				case 2:
					_, _ = ch.Write(bytes())
				default:
					_, _ = ch.SendRequest(kinds[random.IntN(len(kinds))], random.IntN(4) == 0, bytes())
				}
			}
		}
		c.Close()
	}
	if r := exec(t, d.client(), "echo ok", nil); r != (result{"ok\n", "", 0}) {
		t.Errorf("%+v", r)
	}
}
