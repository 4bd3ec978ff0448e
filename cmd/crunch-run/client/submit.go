package client

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/docker/go-units"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/commandline"
	"crunch-oci/cmd/crunch-run/transfer"
)

// Where a submitted command finds things: as with "crunch-run local".
const (
	outputPath = "/out"
	inputPath  = "/in"
)

// waitPoll is the time between two looks at a request that is waited for.
const waitPoll = time.Second

// submission is what the flags of "submit" say.
type submission struct {
	image      string
	inputs     list
	env        list
	cwd        string
	vcpus      int
	ram        string
	api        bool
	priority   int
	attempts   int
	maxRunTime time.Duration
	reuse      bool
	outputName string
	wait       bool
}

var submit = &command{
	name: "submit",
	usage: `Usage: crunch-run submit --image NAME [options] -- COMMAND [ARG...]

Submits a container request: some node of the cluster runs the command, and its
output and log become collections. Prints the request's UUID.

The command sees each input read-only at /in/NAME. It starts in /out, which is
the output: what it leaves there is saved.

  --image NAME         repository:tag, image id or portable data hash (required)
  --input NAME=COLL    collection (UUID or portable data hash) at /in/NAME (repeatable)
  --env KEY=VALUE      environment variable (repeatable)
  --cwd DIR            working directory (default /out)
  --vcpus N            CPUs (default 1)
  --ram SIZE           memory limit, e.g. 512MiB or 4GB (default 1GiB)
  --api                give the container a token and a network for the cluster's API
  --name TEXT          name of the request
  --output-name TEXT   name of the output collection
  --project UUID       project for request, output and log (default: your own)
  --priority N         1 to 1000 (default 500)
  --attempts N         containers to use if they get lost (default 3)
  --max-run-time D     stop it after this time, e.g. 2h (default: no limit)
  --no-reuse           run it even if an equal container has run before
  --wait               wait for the end, and say how the container gets on; exit with
                       the command's status. Ctrl-C ends the waiting, not the work
  --json               print the request's record

Exit status with --wait: the command's own; 125 if it has none because the
container was cancelled or could not be run; 130 after Ctrl-C.

Examples:
  crunch-run submit --image debian:12 --wait -- cat /etc/os-release
  crunch-run submit --image tools:1 --input reads=zzzzz-4zz18-0123456789abcde \
      --vcpus 4 --ram 8GiB -- sh -c 'md5sum /in/reads/* > sums.txt'
`,
	flags: func(fs *flag.FlagSet, c *invocation) {
		o := &c.submit
		fs.StringVar(&o.image, "image", "", "")
		fs.Var(&o.inputs, "input", "")
		fs.Var(&o.env, "env", "")
		fs.StringVar(&o.cwd, "cwd", outputPath, "")
		fs.IntVar(&o.vcpus, "vcpus", 1, "")
		fs.StringVar(&o.ram, "ram", "1GiB", "")
		fs.BoolVar(&o.api, "api", false, "")
		fs.StringVar(&c.name1, "name", "", "")
		fs.StringVar(&o.outputName, "output-name", "", "")
		fs.StringVar(&c.project, "project", "", "")
		fs.IntVar(&o.priority, "priority", 500, "")
		fs.IntVar(&o.attempts, "attempts", 3, "")
		fs.DurationVar(&o.maxRunTime, "max-run-time", 0, "")
		o.reuse = true
		fs.BoolFunc("no-reuse", "", func(string) error { o.reuse = false; return nil })
		fs.BoolVar(&o.wait, "wait", false, "")
	},
	run: runSubmit,
}

var collectionUUID = regexp.MustCompile(`^[a-z0-9]{5}-4zz18-[a-z0-9]{15}$`)

// request is the container request that stands for the command line.
func (c *invocation) request() (map[string]any, error) {
	o := c.submit
	ram, err := units.RAMInBytes(o.ram)
	switch {
	case o.image == "":
		return nil, commandline.Misuse("--image is missing: which image shall be run?")
	case len(c.args) == 0:
		return nil, commandline.Misuse("the command is missing; write it after --")
	case o.vcpus < 1:
		return nil, commandline.Misuse("--vcpus %d: at least 1 is needed", o.vcpus)
	case err != nil || ram < 6<<20:
		return nil, commandline.Misuse("--ram %q: a size of at least 6MiB is needed, such as 512MiB or 4GB", o.ram)
	case o.priority < 1 || o.priority > 1000:
		return nil, commandline.Misuse("--priority %d: must be from 1 to 1000", o.priority)
	case o.attempts < 1:
		return nil, commandline.Misuse("--attempts %d: at least 1 is needed", o.attempts)
	case o.maxRunTime < 0:
		return nil, commandline.Misuse("--max-run-time %v: must not be negative", o.maxRunTime)
	case !filepath.IsAbs(o.cwd):
		return nil, commandline.Misuse("--cwd %q: must be an absolute path in the container", o.cwd)
	}
	mounts := map[string]any{outputPath: map[string]any{"kind": "tmp", "capacity": 1 << 40}}
	for _, in := range o.inputs {
		name, coll, _ := strings.Cut(in, "=")
		m := map[string]any{"kind": "collection"}
		switch {
		case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
			return nil, commandline.Misuse("--input %q: must be NAME=COLLECTION, NAME a plain file name", in)
		case mounts[inputPath+"/"+name] != nil:
			return nil, commandline.Misuse("--input: two inputs are called %q", name)
		case collectionUUID.MatchString(coll):
			m["uuid"] = coll
		case arvados.ValidPDH(coll):
			m["portable_data_hash"] = coll
		default:
			return nil, commandline.Misuse("--input %s: %q is neither a collection's UUID nor a portable data hash", name, coll)
		}
		mounts[inputPath+"/"+name] = m
	}
	env := map[string]string{}
	for _, kv := range o.env {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, commandline.Misuse("--env %q: must be KEY=VALUE", kv)
		}
		env[k] = v
	}
	r := map[string]any{
		"state": arvados.RequestCommitted, "priority": o.priority, "container_image": o.image, "command": c.args, "cwd": o.cwd,
		"environment": env, "mounts": mounts, "output_path": outputPath, "use_existing": o.reuse, "container_count_max": o.attempts,
		"runtime_constraints":   map[string]any{"vcpus": o.vcpus, "ram": ram, "API": o.api},
		"scheduling_parameters": map[string]any{"max_run_time": int64(o.maxRunTime / time.Second)},
	}
	for attr, v := range map[string]string{"name": c.name1, "output_name": o.outputName, "owner_uuid": c.project} {
		if v != "" {
			r[attr] = v
		}
	}
	return r, nil
}

func runSubmit(ctx context.Context, c *invocation) (status int, err error) {
	attrs, err := c.request()
	if err != nil {
		return 0, err
	}
	err = c.connected(ctx, func(s *transfer.Session) error {
		image, err := s.ImageByID(ctx, c.submit.image)
		if err != nil {
			return err
		}
		if image != "" {
			attrs["container_image"] = image
		}
		r, err := s.API.CreateContainerRequest(ctx, attrs)
		if err != nil {
			return err
		}
		if !c.submit.wait {
			return c.print(r.Raw, r.UUID+"\n")
		}
		fmt.Fprintf(c.Stderr, "submitted %s\n", r.UUID)
		end, err := c.waitFor(ctx, s, r)
		if err != nil {
			if ctx.Err() != nil {
				fmt.Fprintf(c.Stderr, "%s goes on; crunch-run request cancel %s stops it\n", r.UUID, r.UUID)
			}
			status = exitNoStatus
			return err
		}
		if status = exitNoStatus; end.container.State == arvados.StateComplete && end.container.ExitCode != nil {
			status = *end.container.ExitCode
		}
		return c.print(end.json(), end.text())
	})
	return status, err
}

// waitFor waits until the request is final, and says how it gets on. A request that
// is cancelled before its container has begun stays as it is on the cluster, so
// that it can be given a priority again: nobody waits for that.
func (c *invocation) waitFor(ctx context.Context, s *transfer.Session, r arvados.ContainerRequest) (*requestReport, error) {
	// Hours may have been waited already: some minutes more without the cluster
	// are nothing.
	patient := s.API.WithBudget(arvados.DefaultBudget)
	ticker := time.NewTicker(waitPoll)
	defer ticker.Stop()
	said := ""
	for r.State != arvados.RequestFinal {
		// Not being able to say it is no reason to stop waiting.
		if container, err := s.API.GetContainer(ctx, r.ContainerUUID); err == nil {
			if now := progress(container); now != said {
				fmt.Fprintf(c.Stderr, "%s\n", now)
				said = now
			}
			if r.Priority == 0 && container.State == arvados.StateQueued {
				fmt.Fprintf(c.Stderr, "%s has been cancelled before it began\n", r.UUID)
				return &requestReport{request: r, container: container}, nil
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		var err error
		if r, err = patient.GetContainerRequest(ctx, r.UUID); err != nil {
			return nil, err
		}
	}
	report, err := reportOn(ctx, s, r.UUID)
	if err == nil && report.container.UUID == "" {
		err = errors.New("the request has ended without a container")
	}
	return report, err
}

// progress is one line about a container on its way.
func progress(c arvados.Container) string {
	line := c.UUID + " is " + c.State
	for _, k := range []string{"error", "warning", "activity"} {
		if v, _ := c.RuntimeStatus[k].(string); v != "" {
			return line + ": " + word(v)
		}
	}
	return line
}
