// Package dispatcher takes containers from a cluster's queue and runs a
// supervisor process for each, as crunch-dispatch-local does: it locks a
// container, starts the program, interrupts it when nobody wants the container
// any more, and puts the record right when the program ends without having done
// so (spec: cli-and-dispatch section 15.4). It knows the cluster through its API
// only.
package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/internal/forkthread"
)

// DefaultPoll is the time between two looks at the queue.
const DefaultPoll = time.Second

// DefaultGrace is how long supervisors may take to save what there is when the
// dispatcher stops.
const DefaultGrace = 2 * time.Minute

// callBudget bounds one API call: what fails is tried again at the next look.
const callBudget = 20 * time.Second

// Config of a Dispatcher. API, Slots and Command must be set.
type Config struct {
	// API has an admin token that no other dispatcher uses: what that token has
	// locked and no process of this dispatcher runs is taken to be left behind
	// by a dead one.
	API *arvados.Client
	// Slots is the number of supervisors that run at a time, not counting those
	// of containers that have child requests to wait for.
	Slots int
	// Command makes the command that runs one container. Its SysProcAttr is
	// replaced.
	Command func(uuid string) *exec.Cmd
	// Poll is the time between looks at the queue; 0 means DefaultPoll. A
	// supervisor that ends is followed by another at once.
	Poll time.Duration
	// Grace is the time from the end of Run's context to SIGKILL; 0 means
	// DefaultGrace.
	Grace time.Duration
	// Log gets what operators want to know; nil discards it.
	Log *slog.Logger
}

// Dispatcher runs containers. Make it with New.
type Dispatcher struct {
	cfg  Config
	api  *arvados.Client
	log  *slog.Logger
	self string // UUID of the token

	// Only the goroutine of Run uses these.
	running map[string]*job
	ended   chan *job
}

// job is one supervisor process.
type job struct {
	uuid string
	cmd  *exec.Cmd
	err  error // how it ended
}

// New checks the configuration and learns which locks are the dispatcher's own.
func New(ctx context.Context, cfg Config) (*Dispatcher, error) {
	if cfg.Slots < 0 {
		return nil, fmt.Errorf("dispatcher: %d containers at a time is impossible", cfg.Slots)
	}
	if cfg.Poll <= 0 {
		cfg.Poll = DefaultPoll
	}
	if cfg.Grace <= 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Dispatcher{cfg: cfg, api: cfg.API.WithBudget(callBudget), log: cfg.Log, running: map[string]*job{}, ended: make(chan *job)}
	self, err := d.api.CurrentAuthorization(ctx)
	if err != nil {
		return nil, fmt.Errorf("dispatcher: find out which token this is: %w", err)
	}
	d.self = self.UUID
	return d, nil
}

// Recover puts right what a dispatcher with this token left behind when it
// died: containers without a supervisor are unlocked, or cancelled if user code
// may have run. The caller makes sure that no such dispatcher lives.
func (d *Dispatcher) Recover(ctx context.Context) error {
	mine, err := d.locked(ctx)
	if err != nil {
		return fmt.Errorf("dispatcher: look for containers left behind: %w", err)
	}
	return d.settle(ctx, mine)
}

// Run dispatches until stop is done. Then it interrupts the supervisors at every
// poll and waits for them; what lives after Grace, or when ctx is done, is
// killed. When it returns no process is left.
func (d *Dispatcher) Run(ctx, stop context.Context) {
	ticker := time.NewTicker(d.cfg.Poll)
	defer ticker.Stop()
	for stop.Err() == nil {
		d.look(stop)
		select {
		case <-ticker.C:
		case j := <-d.ended:
			d.reap(j)
		case <-stop.Done():
		}
	}
	d.shutDown(ctx, ticker.C)
}

// look compares the records with the processes, and starts what there is room
// for.
func (d *Dispatcher) look(ctx context.Context) {
	mine, err := d.locked(ctx)
	if err == nil {
		for _, c := range mine {
			if j := d.running[c.UUID]; j != nil && c.Priority == 0 {
				d.log.Info("cancelling container", "container", c.UUID)
				d.interrupt(j)
			}
		}
		if err = d.settle(ctx, mine); err == nil {
			err = d.fill(ctx)
		}
	}
	if err != nil && ctx.Err() == nil {
		d.log.Warn("dispatcher cannot reach the cluster; trying again", "error", err)
	}
}

// locked lists the containers that this dispatcher's token holds.
func (d *Dispatcher) locked(ctx context.Context) ([]arvados.Container, error) {
	var all []arvados.Container
	for {
		var page []arvados.Container
		if err := d.api.List(ctx, "containers", map[string]any{
			"filters": []any{[]any{"locked_by_uuid", "=", d.self}, []any{"state", "in", []string{arvados.StateLocked, arvados.StateRunning}}},
			"select":  []string{"uuid", "state", "priority", "runtime_status"}, "order": "uuid", "limit": 1000, "offset": len(all), "count": "none",
		}, &page); err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return all, nil
		}
		all = append(all, page...)
	}
}

// fill locks and starts queued containers, those of highest priority first,
// while there are free slots.
func (d *Dispatcher) fill(ctx context.Context) error {
	free := d.cfg.Slots - len(d.running)
	if free <= 0 {
		waiting, err := d.parents(ctx)
		if err != nil {
			return err
		}
		if free += waiting; free <= 0 {
			return nil
		}
	}
	var queue []arvados.Container
	if err := d.api.List(ctx, "containers", map[string]any{
		"filters": []any{[]any{"state", "=", arvados.StateQueued}, []any{"priority", ">", "0"}},
		"select":  []string{"uuid"}, "order": "priority desc", "limit": free, "count": "none",
	}, &queue); err != nil {
		return err
	}
	for _, c := range queue {
		_, err := d.api.Lock(ctx, c.UUID)
		if arvados.IsStatus(err, http.StatusUnprocessableEntity) {
			continue // cancelled, or somebody else was faster
		}
		if err != nil {
			return err
		}
		// A container that cannot be started is locked and has no process: the
		// next look unlocks it.
		if err := d.start(c.UUID); err != nil {
			d.log.Error("cannot start a supervisor", "container", c.UUID, "error", err)
		}
	}
	return nil
}

// parents counts the running containers that have requests of their own to wait
// for. They take no slot: with all slots taken by such, nothing would ever go on.
func (d *Dispatcher) parents(ctx context.Context) (int, error) {
	running := slices.Collect(maps.Keys(d.running))
	if len(running) == 0 {
		return 0, nil
	}
	var waited []struct {
		By string `json:"requesting_container_uuid"`
	}
	err := d.api.List(ctx, "container_requests", map[string]any{
		"filters": []any{[]any{"requesting_container_uuid", "in", running}, []any{"state", "=", arvados.RequestCommitted}, []any{"priority", ">", "0"}},
		"select":  []string{"requesting_container_uuid"}, "distinct": true, "limit": len(running), "count": "none",
	}, &waited)
	return len(waited), err
}

// start starts the supervisor of a locked container. It dies with this
// process, also when this process is killed.
func (d *Dispatcher) start(uuid string) error {
	j := &job{uuid: uuid, cmd: d.cfg.Command(uuid)}
	// In a group of its own a Ctrl-C at the terminal is this process's to
	// handle.
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var err error
	forkthread.Do(func() { err = j.cmd.Start() })
	if err != nil {
		return err
	}
	d.log.Info("started supervisor", "container", uuid, "pid", j.cmd.Process.Pid)
	d.running[uuid] = j
	go func() { // ends when Run has received from it, which it does for all
		j.err = j.cmd.Wait()
		d.ended <- j
	}()
	return nil
}

// reap notes that a supervisor has ended. What its exit status was does not
// matter: the record says how it went, or is put right by the next look.
func (d *Dispatcher) reap(j *job) {
	delete(d.running, j.uuid)
	d.log.Info("supervisor ended", "container", j.uuid, "status", j.cmd.ProcessState.String())
}

// interrupt asks a supervisor to stop its container. It may be asked again and
// again.
func (d *Dispatcher) interrupt(j *job) {
	// An error means that it has just ended, which is about to be noticed.
	_ = j.cmd.Process.Signal(syscall.SIGINT)
}

// settle puts the records right of containers that are locked but have no
// supervisor.
func (d *Dispatcher) settle(ctx context.Context, mine []arvados.Container) error {
	var errs []error
	for _, c := range mine {
		if d.running[c.UUID] != nil {
			continue
		}
		var err error
		if c.State == arvados.StateLocked {
			d.log.Warn("supervisor left a container locked; it goes back to the queue", "container", c.UUID)
			err = d.api.Call(ctx, http.MethodPost, "containers/"+c.UUID+"/unlock", nil, nil)
		} else {
			d.log.Warn("supervisor left a container running; it is cancelled", "container", c.UUID)
			err = d.api.UpdateContainer(ctx, c.UUID, map[string]any{"state": arvados.StateCancelled, "runtime_status": lostStatus(c.RuntimeStatus)})
		}
		if arvados.IsStatus(err, http.StatusUnprocessableEntity) || arvados.IsStatus(err, http.StatusForbidden) {
			err = nil // not ours any more: somebody has just seen to it
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// lostStatus says why the container was cancelled, unless an error is said
// already. The rest is kept: an update replaces the whole.
func lostStatus(status map[string]any) map[string]any {
	out := map[string]any{"error": "The supervisor of this container ended without reporting how the container did."}
	for k, v := range status {
		out[k] = v
	}
	return out
}

// shutDown stops the supervisors and waits for them.
func (d *Dispatcher) shutDown(ctx context.Context, tick <-chan time.Time) {
	kill := time.NewTimer(d.cfg.Grace)
	defer kill.Stop()
	stop := func() {
		for _, j := range d.running {
			d.interrupt(j)
		}
	}
	stop()
	done := ctx.Done()
	for len(d.running) > 0 {
		select {
		case j := <-d.ended:
			d.reap(j)
		case <-tick:
			stop()
		case <-kill.C:
			d.kill()
		case <-done:
			done = nil
			d.kill()
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callBudget)
	defer cancel()
	if err := d.Recover(ctx); err != nil {
		d.log.Error("containers may be left locked; the next start of the cluster sees to them", "error", err)
	}
}

// kill ends what does not want to stop. A supervisor's container and mounts die
// with it.
func (d *Dispatcher) kill() {
	for _, j := range d.running {
		d.log.Warn("killing supervisor", "container", j.uuid)
		_ = j.cmd.Process.Kill()
	}
}
