package validation

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// stateEnv makes this program a runtime, with its state in the directory named.
const stateEnv = "CRUNCH_RUN_VALIDATION_STATE"

// A container of package oci lives and dies with the process that has made it.
// The command line of a runtime wants it to outlive "create"; so that starts a
// keeper for each, which the other commands talk to through a socket.

// order is what a command asks of a keeper, answer what it says.
type order struct {
	Do     string // start, state, kill, delete
	Signal syscall.Signal
	Force  bool
}

type answer struct {
	Error string
	State specs.State
}

func runtimeMain(dir string, args []string) int {
	if err := command(dir, args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func command(dir string, args []string) error {
	if len(args) == 0 {
		return errors.New("which command?")
	}
	verb, options, operands := args[0], map[string]string{}, []string(nil)
	for rest := args[1:]; len(rest) > 0; rest = rest[1:] {
		switch rest[0] {
		case "--force":
			options["force"] = "yes"
		case "--bundle", "--pid-file":
			if len(rest) < 2 {
				return fmt.Errorf("%s needs a value", rest[0])
			}
			options[strings.TrimPrefix(rest[0], "--")] = rest[1]
			rest = rest[1:]
		default:
			operands = append(operands, rest[0])
		}
	}
	if len(operands) == 0 {
		return errors.New("a container id is needed")
	}
	id := operands[0]
	if id != filepath.Base(id) {
		return fmt.Errorf("invalid container id %q", id)
	}
	switch verb {
	case "keep":
		return keep(dir, id, options["bundle"])
	case "create":
		return create(dir, id, options["bundle"], options["pid-file"])
	case "start", "delete":
		_, err := ask(dir, id, order{Do: verb, Force: options["force"] != ""})
		return err
	case "kill":
		sig := syscall.SIGTERM
		if len(operands) > 1 {
			var err error
			if sig, err = parseSignal(operands[1]); err != nil {
				return err
			}
		}
		_, err := ask(dir, id, order{Do: verb, Signal: sig})
		return err
	case "state":
		a, err := ask(dir, id, order{Do: verb})
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(a.State)
	}
	return fmt.Errorf("%s is no command", verb)
}

func parseSignal(text string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(text); err == nil {
		return syscall.Signal(n), nil
	}
	known := map[string]syscall.Signal{"KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "QUIT": syscall.SIGQUIT}
	sig, ok := known[strings.TrimPrefix(strings.ToUpper(text), "SIG")]
	if !ok {
		return 0, fmt.Errorf("%s is no signal", text)
	}
	return sig, nil
}

func socketPath(dir, id string) string { return filepath.Join(dir, id+".socket") }

// ask gives an order to a container's keeper.
func ask(dir, id string, o order) (answer, error) {
	conn, err := net.Dial("unix", socketPath(dir, id))
	if err != nil {
		return answer{}, fmt.Errorf("container %s does not exist: %w", id, err)
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return answer{}, fmt.Errorf("container %s: %w", id, err)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// create starts a keeper, and returns when it has made the container.
func create(dir, id, bundle, pidFile string) error {
	if _, err := ask(dir, id, order{Do: "state"}); err == nil {
		return fmt.Errorf("container %s exists", id)
	}
	if bundle == "" {
		bundle = "."
	}
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	keeper := exec.Command("/proc/self/exe", "keep", "--bundle", bundle, id)
	keeper.Stdout, keeper.Stderr = os.Stdout, os.Stderr // the container's
	keeper.ExtraFiles = []*os.File{w}
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = keeper.Start()
	w.Close()
	if err != nil {
		return err
	}
	result, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(result))
	if err != nil {
		_ = keeper.Wait()
		return errors.New(string(result))
	}
	if pidFile != "" {
		return os.WriteFile(pidFile, result, 0o644)
	}
	return errIf(pid <= 0, "no process")
}

func errIf(wrong bool, text string) error {
	if wrong {
		return errors.New(text)
	}
	return nil
}
