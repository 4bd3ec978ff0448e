package localkeep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"crunch-oci/internal/forkthread"
)

// ListenFD names the variable that tells the server which descriptor it shall
// listen on. The supervisor keeps it open too: a server that is started again is
// where its predecessor was, and who connects meanwhile waits.
const ListenFD = "CRUNCH_RUN_KEEPSTORE_FD"

const (
	healthInterval = 100 * time.Millisecond
	healthTimeout  = 10 * time.Second
	firstRestart   = time.Second
	lastRestart    = time.Minute
)

// Config is what a Server needs.
type Config struct {
	// Command is the program with its arguments; it reads the cluster's
	// configuration from stdin.
	Command []string
	// ClusterID and Cluster, as JSON, are that configuration.
	ClusterID string
	Cluster   json.RawMessage
	// ManagementToken opens the server's health check.
	ManagementToken string
	// Buffers is the number of blocks of 64 MiB it may hold in memory.
	Buffers int
	// Output gets what the server writes to stdout and stderr.
	Output io.Writer
	// Inherit are files that the server keeps open for as long as it lives.
	Inherit []*os.File
	// Logf gets what operators should know about a server that has been
	// started. It may be nil until SetLog.
	Logf func(format string, args ...any)
}

// Server is a block server that is started again when it ends.
type Server struct {
	c        Config
	url      string
	listener *os.File
	input    []byte
	client   *http.Client

	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	pid  int // 0: none is running
	logf func(format string, args ...any)
}

// Start starts a server and returns when it is healthy. The first line of logf,
// its address, comes before that. Nothing is left when there is an error.
func Start(ctx context.Context, c Config) (_ *Server, err error) {
	if c.ManagementToken == "" {
		return nil, errors.New("ManagementToken is not set in the cluster configuration: the health of a keepstore could not be asked for")
	}
	input, err := handOver(c.ClusterID, c.Cluster, c.Buffers)
	if err != nil {
		return nil, fmt.Errorf("cluster configuration: %w", err)
	}
	listener, addr, err := listen(c.Logf)
	if err != nil {
		return nil, err
	}
	s := &Server{
		c: c, url: "http://" + addr, listener: listener, input: input, logf: c.Logf, done: make(chan struct{}),
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: healthTimeout},
	}
	s.say("starting keepstore on %s", s.url)
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	exited, err := s.launch(life)
	if err == nil {
		if err = s.waitHealthy(ctx, exited); err != nil {
			stop()
			<-exited.done
		}
	}
	if err != nil {
		stop()
		_ = listener.Close()
		return nil, err
	}
	go s.watch(life, exited)
	return s, nil
}

// listen opens the socket that the server gets.
func listen(logf func(string, ...any)) (*os.File, string, error) {
	var addresses []netip.Addr
	list, err := net.InterfaceAddrs()
	if err != nil && logf != nil {
		logf("warning: could not get list of host IP addresses: %v", err)
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				addresses = append(addresses, ip)
			}
		}
	}
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(choose(addresses), 0)))
	if err != nil {
		return nil, "", fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return nil, "", fmt.Errorf("listen: %w", err)
	}
	return f, l.Addr().String(), nil
}

// exit is how a process ended, once done is closed.
type exit struct {
	done chan struct{}
	err  error
}

// launch starts a process that is killed when ctx ends.
func (s *Server) launch(ctx context.Context) (*exit, error) {
	cmd := exec.Command(s.c.Command[0], s.c.Command[1:]...)
	// Nothing else of this environment: it is full of tokens.
	cmd.Env = []string{"GOGC=10", "ARVADOS_SERVICE_INTERNAL_URL=" + s.url, ListenFD + "=3"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(s.input)
	cmd.Stdout, cmd.Stderr = s.c.Output, s.c.Output
	cmd.ExtraFiles = append([]*os.File{s.listener}, s.c.Inherit...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = time.Second
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		return nil, err
	}
	s.setPID(cmd.Process.Pid)
	end := &exit{done: make(chan struct{})}
	go func() {
		defer close(end.done)
		defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
		end.err = cmd.Wait()
		s.setPID(0)
	}()
	return end, nil
}

func (s *Server) waitHealthy(ctx context.Context, end *exit) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	// The socket is open whether or not anybody will accept: a question to a
	// process that has ended must not be waited for.
	asking, ended := context.WithCancel(ctx)
	defer ended()
	go func() {
		defer ended()
		select {
		case <-end.done:
		case <-asking.Done():
		}
	}()
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		if s.healthy(asking) {
			return nil
		}
		select {
		case <-end.done:
			return errors.New("keepstore child process exited")
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return errors.New("timed out waiting for new keepstore process to report healthy")
			}
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

func (s *Server) healthy(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/_health/ping", nil)
	if err != nil {
		return false
	}
	req.Header.Set("Authorization", "Bearer "+s.c.ManagementToken)
	resp, err := s.client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// watch starts the server again when it ends, until ctx does.
func (s *Server) watch(ctx context.Context, end *exit) {
	defer close(s.done)
	for wait := firstRestart; ; wait = min(2*wait, lastRestart) {
		<-end.done
		for started := false; !started; {
			if ctx.Err() != nil {
				return
			}
			s.say("local keepstore process ended: %v -- starting it again in %v", end.err, wait)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			next, err := s.launch(ctx)
			if err != nil {
				end = &exit{err: err}
				continue
			}
			end, started = next, true
		}
	}
}

// URL is where the server is.
func (s *Server) URL() string { return s.url }

// PID is the process's number, 0 if none is running.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid
}

func (s *Server) setPID(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid = pid
}

// SetLog changes where messages go.
func (s *Server) SetLog(logf func(format string, args ...any)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logf = logf
}

func (s *Server) say(format string, args ...any) {
	s.mu.Lock()
	logf := s.logf
	s.mu.Unlock()
	if logf != nil {
		logf(format, args...)
	}
}

// Close kills the server.
func (s *Server) Close() error {
	s.stop()
	<-s.done
	s.client.CloseIdleConnections()
	return s.listener.Close()
}
