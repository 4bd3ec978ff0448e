package shell

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"crunch-oci/arvados"
)

const connectUsage = `Usage: crunch-run connect-ssh [--detach-keys KEYS] [ACCOUNT@]UUID

Connects standard input and output to the SSH server of a running container (or
container request), through the cluster that ARVADOS_API_HOST and
ARVADOS_API_TOKEN name. It is a ProxyCommand for ssh(1):

  ssh -o ProxyCommand='crunch-run connect-ssh %h' -o StrictHostKeyChecking=no \
      -o UserKnownHostsFile=/dev/null xxxxx-dz642-xxxxxxxxxxxxxxx

The account in the container is ACCOUNT, not ssh's (default root).
`

// dialTime bounds connecting to the cluster and its answer.
const dialTime = 2 * time.Minute

// ConnectEnv is where "connect-ssh" runs.
type ConnectEnv struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Cluster        arvados.Config
}

// Connect runs the command line of "connect-ssh" and returns the exit code.
func Connect(ctx context.Context, args []string, e ConnectEnv) int {
	fs := flag.NewFlagSet("crunch-run connect-ssh", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	keys := fs.String("detach-keys", "", "")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(e.Stdout, connectUsage)
		return 0
	} else if err != nil || fs.NArg() != 1 {
		if err == nil {
			err = errors.New("one container is needed, and no other argument")
		}
		fmt.Fprintf(e.Stderr, "crunch-run connect-ssh: %v (try -h)\n", err)
		return exitUsage
	}
	account, uuid, found := strings.Cut(fs.Arg(0), "@")
	if !found {
		account, uuid = "", fs.Arg(0)
	}
	if err := e.connect(ctx, uuid, account, *keys); errors.Is(err, errBroken) {
		return exitFailure // which ssh sees, and says
	} else if err != nil {
		fmt.Fprintf(e.Stderr, "crunch-run connect-ssh: %s: %v\n", uuid, err)
		return exitFailure
	}
	return 0
}

func (e ConnectEnv) connect(ctx context.Context, uuid, account, keys string) error {
	early, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	api, err := arvados.NewClient(e.Cluster) // refuses what is not configured
	if err != nil {
		return err
	}
	defer api.Close()
	if uuid, err = container(early, api, uuid); err != nil {
		return err
	}
	config, err := e.Cluster.TLS()
	if err != nil {
		return err
	}
	address := e.Cluster.Host
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), "443")
	}
	c, err := (&tls.Dialer{Config: config}).DialContext(early, "tcp", address)
	if err != nil {
		return fmt.Errorf("connect to the cluster: %w", err)
	}
	conn := c.(*tls.Conn)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	in, err := e.upgrade(early, conn, uuid, account, keys)
	if err != nil {
		return err
	}
	go func() { // ends with the program
		if _, err := io.Copy(conn, e.Stdin); err == nil {
			_ = conn.CloseWrite()
		}
	}()
	if _, err := io.Copy(e.Stdout, in); err != nil {
		return errBroken
	}
	return nil
}

// errBroken ends a connection that has been made.
var errBroken = errors.New("connection broken")

// container finds the container of a request.
func container(ctx context.Context, api *arvados.Client, uuid string) (string, error) {
	if !strings.Contains(uuid, "-xvhdp-") {
		return uuid, nil
	}
	r, err := api.GetContainerRequest(ctx, uuid)
	if err == nil && r.ContainerUUID == "" {
		err = errors.New("the request has no container yet")
	}
	return r.ContainerUUID, err
}

// upgrade asks for the shell. What the container's side says comes from the
// reader it returns.
func (e ConnectEnv) upgrade(ctx context.Context, conn *tls.Conn, uuid, account, keys string) (io.Reader, error) {
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	form := url.Values{"detach_keys": {keys}, "login_username": {account}, "no_forward": {"false"}}.Encode()
	request, err := http.NewRequest(http.MethodPost, "https://"+e.Cluster.Host+"/arvados/v1/connect/"+url.PathEscape(uuid)+"/ssh", strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+e.Cluster.Token)
	request.Header.Set("Upgrade", "ssh")
	request.Header.Set("Connection", "upgrade")
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if err := request.Write(conn); err != nil {
		return nil, fmt.Errorf("ask for a shell: %w", err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, request)
	if err != nil {
		return nil, fmt.Errorf("ask for a shell: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, refusal(resp)
	}
	if got := resp.Header.Get("Upgrade"); !strings.EqualFold(got, "ssh") {
		return nil, fmt.Errorf("the cluster upgraded the connection to %q, not to SSH", got)
	}
	return in, conn.SetDeadline(time.Time{})
}

// refusal says why there is no shell, in the cluster's words if it has any.
func refusal(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // what there is of it
	var body struct{ Errors []string }
	if json.Unmarshal(text, &body) == nil && len(body.Errors) > 0 {
		return fmt.Errorf("%s: %s", resp.Status, strings.Join(body.Errors, "; "))
	}
	return fmt.Errorf("%s: %q", resp.Status, text)
}
