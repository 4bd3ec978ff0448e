package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
)

var (
	// ErrNoRun says that no supervisor has this runtime directory.
	ErrNoRun = errors.New("no such container on this node")
	// ErrNotReady says that there is a run, but no door into it.
	ErrNotReady = errors.New("its supervisor is still starting, or about to end")
	// ErrDead says that there is a door, but nobody behind it.
	ErrDead = errors.New("its supervisor is dead")
)

// Dial enters by the door in the runtime directory dir. SSH is spoken on the
// connection. Errors wrap those above.
func Dial(ctx context.Context, dir string, hello Hello) (net.Conn, error) {
	d, name, err := socket(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, ErrNoRun
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNotReady
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrDead
	case err != nil:
		return nil, fmt.Errorf("connect to the supervisor: %w", err)
	}
	line, err := json.Marshal(hello)
	if err == nil {
		_, err = conn.Write(append(line, '\n'))
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to the supervisor: %w", err)
	}
	return conn, nil
}
