package validation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/oci"
)

// keeper has one container.
type keeper struct {
	id, bundle  string
	annotations map[string]string
	ctr         *oci.Container
	ended       chan struct{}
	started     bool
}

// resultFD is where a keeper says whether it has a container.
const resultFD = 3

// orderTimeout bounds every order.
const orderTimeout = 30 * time.Second

// keep is the whole life of a keeper.
func keep(dir, id, bundle string) error {
	result := os.NewFile(resultFD, "result")
	k, listener, err := newKeeper(dir, id, bundle)
	if err != nil {
		_, _ = result.WriteString(err.Error())
		return errors.Join(err, result.Close())
	}
	defer listener.Close()
	if _, err := result.WriteString(strconv.Itoa(k.ctr.PID())); err != nil {
		return err
	}
	if err := result.Close(); err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		var o order
		var a answer
		err = json.NewDecoder(conn).Decode(&o)
		if err == nil {
			err = k.obey(o)
		}
		if err != nil {
			a.Error = err.Error()
		}
		a.State = k.state()
		over := o.Do == "delete" && (err == nil || o.Force) // with its keeper ends what is left
		if over {
			listener.Close() // the container is gone when the command ends
		}
		_ = json.NewEncoder(conn).Encode(a)
		conn.Close()
		if over {
			return nil
		}
	}
}

func newKeeper(dir, id, bundle string) (*keeper, net.Listener, error) {
	text, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), orderTimeout)
	defer cancel()
	runtime := &oci.Runtime{StateDir: filepath.Join(dir, "state"), Warn: func(string) {}}
	ctr, err := runtime.Create(ctx, id, bundle, oci.Stdio{Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		return nil, nil, err
	}
	k := &keeper{id: id, bundle: bundle, annotations: spec.Annotations, ctr: ctr, ended: make(chan struct{})}
	go func() {
		defer close(k.ended)
		_, _ = ctr.Wait(context.Background())
	}()
	if ctr.PID() == 0 { // found out early that the command cannot be executed
		return nil, nil, errors.Join(ctr.Start(ctx), ctr.Delete(ctx))
	}
	listener, err := net.Listen("unix", socketPath(dir, id))
	if err != nil {
		return nil, nil, errors.Join(err, ctr.Delete(ctx))
	}
	return k, listener, nil
}

func (k *keeper) stopped() bool {
	select {
	case <-k.ended:
		return true
	default:
		return false
	}
}

func (k *keeper) state() specs.State {
	s := specs.State{Version: specs.Version, ID: k.id, Bundle: k.bundle, Annotations: k.annotations, Status: specs.StateStopped}
	if !k.stopped() {
		s.Pid, s.Status = k.ctr.PID(), specs.StateCreated
		if k.started {
			s.Status = specs.StateRunning
		}
	}
	return s
}

func (k *keeper) obey(o order) error {
	ctx, cancel := context.WithTimeout(context.Background(), orderTimeout)
	defer cancel()
	switch o.Do {
	case "state":
		return nil
	case "start":
		if k.started || k.stopped() {
			return fmt.Errorf("container %s is not created, but %s", k.id, k.state().Status)
		}
		// The command goes on after the order.
		err := k.ctr.Start(context.Background())
		k.started = err == nil
		return err
	case "kill":
		if k.stopped() {
			return fmt.Errorf("container %s has stopped", k.id)
		}
		return k.ctr.Signal(o.Signal)
	case "delete":
		if !k.stopped() && !o.Force {
			return fmt.Errorf("container %s has not stopped: it is %s", k.id, k.state().Status)
		}
		return k.ctr.Delete(ctx)
	}
	return fmt.Errorf("unknown order %q", o.Do)
}
