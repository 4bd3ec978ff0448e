package console

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/gateway"
)

const (
	// socketName is the socket's name in the runtime directory.
	socketName = "shell"
	// maxGuests bounds the connections at a time.
	maxGuests = 64
	// helloSize and helloTime bound what a guest says first.
	helloSize = 4096
	helloTime = 10 * time.Second
)

// Hello is what a guest says first, in one line of JSON. SSH follows.
type Hello struct {
	// LoginUser is the account in the container, "" for root.
	LoginUser string `json:"login_user"`
	// DetachKeys is the sequence as the user wrote it, "" for the default one.
	DetachKeys string `json:"detach_keys"`
}

// Server is an open door.
type Server struct {
	ssh      gateway.SSHServer
	logf     func(string, ...any)
	dir      *os.File
	listener *net.UnixListener
	guests   chan struct{}

	stop context.CancelFunc
	busy sync.WaitGroup
}

// Listen opens the door in dir, which only root can enter.
func Listen(dir string, ssh gateway.SSHServer, logf func(string, ...any)) (*Server, error) {
	d, name, err := socket(dir)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err == nil {
		err = os.Chmod(name, 0o600)
	}
	if err != nil {
		_ = d.Close()
		if l != nil {
			_ = l.Close()
		}
		return nil, fmt.Errorf("console: listen in %s: %w", dir, err)
	}
	s := &Server{ssh: ssh, logf: logf, dir: d, listener: l, guests: make(chan struct{}, maxGuests)}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	s.busy.Go(func() { s.accept(ctx) })
	return s, nil
}

// socket names the socket in dir by way of an open directory: the name of a
// socket has to be shorter than that of a directory may be (unix(7)).
func socket(dir string) (d *os.File, name string, err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", &os.PathError{Op: "open", Path: dir, Err: err}
	}
	d = os.NewFile(uintptr(fd), dir)
	return d, filepath.Join("/proc/self/fd", fmt.Sprint(fd), socketName), nil
}

func (s *Server) accept(ctx context.Context) {
	for {
		c, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case s.guests <- struct{}{}:
			s.busy.Go(func() {
				defer func() { <-s.guests }()
				s.serve(ctx, c)
			})
		default:
			_ = c.Close()
		}
	}
}

// serve lets a guest in.
func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	if uid, err := peer(c); err != nil || uid != 0 && uid != uint32(os.Geteuid()) {
		s.logf("console: refused a connection of user %d (%v)", uid, err)
		return
	}
	_ = c.SetDeadline(time.Now().Add(helloTime))
	in := bufio.NewReaderSize(c, helloSize)
	line, err := in.ReadSlice('\n')
	var hello Hello
	if err == nil {
		err = json.Unmarshal(line, &hello)
	}
	if err != nil {
		if err != io.EOF { // a look through the door is no error
			s.logf("console: connection that says nothing useful: %v", err)
		}
		return
	}
	_ = c.SetDeadline(time.Time{})
	if hello.LoginUser == "" {
		hello.LoginUser = "root"
	}
	s.ssh.ServeConn(ctx, &guest{UnixConn: c, in: in}, gateway.SSHOptions{DetachKeys: hello.DetachKeys, LoginUser: hello.LoginUser})
}

// guest is a connection of which some has been read.
type guest struct {
	*net.UnixConn
	in *bufio.Reader
}

func (g *guest) Read(p []byte) (int, error) { return g.in.Read(p) }

// peer is the user at the other end.
func peer(c *net.UnixConn) (uid uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// Close ends all sessions, and waits for them until ctx is done.
func (s *Server) Close(ctx context.Context) error {
	s.stop()
	err := s.listener.Close() // and removes the socket
	_ = s.dir.Close()
	done := make(chan struct{})
	go func() { s.busy.Wait(); close(done) }()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("console: sessions have not ended: %w", context.Cause(ctx)))
	}
}
