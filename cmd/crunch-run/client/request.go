package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/commandline"
	"crunch-oci/cmd/crunch-run/transfer"
)

var requestShow = &command{
	name: "request show",
	usage: `Usage: crunch-run request show [--json] UUID

Shows how a container request is doing: its state and its container's, and, when it
has ended, exit code, output and log. With --json, both records.

Examples:
  crunch-run request show zzzzz-xvhdp-0123456789abcde
  crunch-run request show --json zzzzz-xvhdp-0123456789abcde | jq .container.runtime_status
`,
	run: func(ctx context.Context, c *invocation) (int, error) {
		uuid, err := c.requestUUID()
		if err != nil {
			return 0, err
		}
		return 0, c.connected(ctx, func(s *transfer.Session) error {
			r, err := reportOn(ctx, s, uuid)
			if err != nil {
				return err
			}
			return c.print(r.json(), r.text())
		})
	},
}

var requestCancel = &command{
	name: "request cancel",
	usage: `Usage: crunch-run request cancel [--json] UUID

Cancels a container request by setting its priority to 0. A container that no other
request wants is stopped; its output and log so far are kept.

Example:
  crunch-run request cancel zzzzz-xvhdp-0123456789abcde
`,
	run: func(ctx context.Context, c *invocation) (int, error) {
		uuid, err := c.requestUUID()
		if err != nil {
			return 0, err
		}
		return 0, c.connected(ctx, func(s *transfer.Session) error {
			r, err := s.API.GetContainerRequest(ctx, uuid)
			if err != nil {
				return err
			}
			if r.State == arvados.RequestFinal {
				return fmt.Errorf("%s has ended already", uuid)
			}
			if r, err = s.API.UpdateContainerRequest(ctx, uuid, map[string]any{"priority": 0}); err != nil {
				return err
			}
			return c.print(r.Raw, uuid+" is cancelled\n")
		})
	},
}

var requestUUIDPattern = regexp.MustCompile(`^[a-z0-9]{5}-xvhdp-[a-z0-9]{15}$`)

func (c *invocation) requestUUID() (string, error) {
	if len(c.args) != 1 || !requestUUIDPattern.MatchString(c.args[0]) {
		return "", commandline.Misuse("the UUID of one container request is needed, such as zzzzz-xvhdp-0123456789abcde")
	}
	return c.args[0], nil
}

// requestReport is a request with its container.
type requestReport struct {
	request   arvados.ContainerRequest
	container arvados.Container // without a UUID if there is none
}

func reportOn(ctx context.Context, s *transfer.Session, uuid string) (*requestReport, error) {
	request, err := s.API.GetContainerRequest(ctx, uuid)
	if err != nil {
		return nil, err
	}
	r := &requestReport{request: request}
	if request.ContainerUUID == "" {
		return r, nil
	}
	r.container, err = s.API.GetContainer(ctx, request.ContainerUUID)
	if arvados.IsStatus(err, http.StatusNotFound) {
		r.container, err = arvados.Container{}, nil // gone, or not ours to read
	}
	return r, err
}

func (r *requestReport) json() any {
	out := map[string]json.RawMessage{"container_request": r.request.Raw, "container": r.container.Raw}
	if r.container.Raw == nil {
		out["container"] = json.RawMessage("null")
	}
	return out
}

func (r *requestReport) text() string {
	var b strings.Builder
	line := func(label, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-16s %s\n", label, word(value))
		}
	}
	at := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	line("request", r.request.UUID)
	line("name", r.request.Name)
	state := r.request.State
	if state == arvados.RequestCommitted && r.request.Priority == 0 {
		state += " (cancelled)"
	}
	line("state", state)
	line("priority", strconv.FormatInt(r.request.Priority, 10))
	if c := r.container; c.UUID != "" {
		line("container", c.UUID)
		line("container state", c.State)
		for _, k := range []string{"activity", "warning", "warningDetail", "error", "errorDetail"} {
			if v, _ := c.RuntimeStatus[k].(string); v != "" {
				line("  "+k, v)
			}
		}
		line("started", at(c.StartedAt))
		line("finished", at(c.FinishedAt))
		if c.ExitCode != nil {
			line("exit code", strconv.Itoa(*c.ExitCode))
		}
	}
	line("output", r.request.OutputUUID)
	line("log", r.request.LogUUID)
	if r.container.State == arvados.StateCancelled && r.request.LogUUID != "" {
		line("to see why", "crunch-run collection get "+r.request.LogUUID+"/crunch-run.txt -")
	}
	return b.String()
}
