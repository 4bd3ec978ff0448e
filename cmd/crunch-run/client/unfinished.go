package client

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/commandline"
	"crunch-oci/cmd/crunch-run/transfer"
	"crunch-oci/supervisor/unfinished"
)

var unfinishedList = &command{
	name: "unfinished list",
	usage: `Usage: crunch-run unfinished list [--json]

Lists results of containers that this node could not give to the API: how each
container ended, when, and why the API has not got it. Results are kept on the
node's disk without any token; the data itself is in Keep, where it is safe for as
long as the cluster's BlobSigningTTL, by default two weeks.

Examples:
  crunch-run unfinished list
  crunch-run unfinished list --json | jq -r '.[].uuid'
`,
	run: func(_ context.Context, c *invocation) (int, error) {
		if len(c.args) > 0 {
			return 0, commandline.Misuse("it takes no arguments")
		}
		dir, err := c.Unfinished()
		if err != nil {
			return 0, err
		}
		entries, err := dir.List()
		if entries == nil {
			entries = []unfinished.Entry{}
		}
		return 0, errors.Join(c.print(entries, listUnfinished(entries)), err)
	},
}

var unfinishedDeliver = &command{
	name: "unfinished deliver",
	usage: `Usage: crunch-run unfinished deliver [--json] [--project UUID] [--force] UUID... | --all

Saves the logs and outputs of containers whose supervisor could not, as collections,
with the token in ARVADOS_API_TOKEN, which must be an administrator's: the manifests
are kept without signatures. If the container is still Running, its record gets its
final state as well; that takes the token of the dispatcher that locked it.

  --all            all results that are not in use
  --project UUID   the project for the collections; default: the token's user
  --force          also if the cluster does not know the container

Examples:
  crunch-run unfinished deliver zzzzz-dz642-0123456789abcde
  crunch-run unfinished deliver --all
`,
	flags: func(fs *flag.FlagSet, c *invocation) {
		fs.BoolVar(&c.all, "all", false, "")
		fs.BoolVar(&c.force, "force", false, "")
		fs.StringVar(&c.project, "project", "", "")
	},
	run: func(ctx context.Context, c *invocation) (int, error) {
		dir, uuids, err := c.chosenResults()
		if err != nil || len(uuids) == 0 {
			return 0, err
		}
		return 0, c.connected(ctx, func(s *transfer.Session) error {
			done := []delivered{}
			var errs []error
			var text strings.Builder
			for _, uuid := range uuids {
				d, err := c.deliver(ctx, s, dir, uuid)
				if err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", uuid, err))
					continue
				}
				done = append(done, d)
				text.WriteString(d.text())
			}
			return errors.Join(append(errs, c.print(done, text.String()))...)
		})
	},
}

var unfinishedDrop = &command{
	name: "unfinished drop",
	usage: `Usage: crunch-run unfinished drop UUID... | --all

Forgets results of containers that this node could not give to the API. Their data in
Keep goes the way of all data that no collection names.

Example:
  crunch-run unfinished drop zzzzz-dz642-0123456789abcde
`,
	flags: func(fs *flag.FlagSet, c *invocation) { fs.BoolVar(&c.all, "all", false, "") },
	run: func(_ context.Context, c *invocation) (int, error) {
		dir, uuids, err := c.chosenResults()
		if err != nil {
			return 0, err
		}
		var errs []error
		dropped := []string{}
		for _, uuid := range uuids {
			kept, _, err := take(dir, uuid)
			if err == nil {
				err = kept.Remove()
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", uuid, err))
				continue
			}
			dropped = append(dropped, uuid)
		}
		text := ""
		if len(dropped) > 0 {
			text = "dropped " + strings.Join(dropped, ", ") + "\n"
		}
		return 0, errors.Join(append(errs, c.print(dropped, text))...)
	},
}

// chosenResults are those named by the command line.
func (c *invocation) chosenResults() (unfinished.Dir, []string, error) {
	if c.all == (len(c.args) > 0) {
		return "", nil, commandline.Misuse("UUIDs of containers are needed, or --all")
	}
	dir, err := c.Unfinished()
	if err != nil || !c.all {
		return dir, c.args, err
	}
	list, err := dir.List()
	var uuids []string
	for _, e := range list {
		if !e.InUse {
			uuids = append(uuids, e.UUID)
		}
	}
	return dir, uuids, err
}

func take(dir unfinished.Dir, uuid string) (*unfinished.Kept, unfinished.Result, error) {
	kept, r, err := dir.Take(uuid)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("there is no result of it in %s", dir)
	}
	return kept, r, err
}

// delivered is what has become of a result.
type delivered struct {
	UUID       string `json:"uuid"`
	LogUUID    string `json:"log_uuid,omitempty"`
	OutputUUID string `json:"output_uuid,omitempty"`
	// Updated says that the record has got its final state; Record is the state
	// it has.
	Updated bool   `json:"updated"`
	Record  string `json:"record_state"`
	Note    string `json:"note,omitempty"`
}

// deliver saves one result and removes it from the node. What fails leaves it
// there: saving it twice does no harm.
func (c *invocation) deliver(ctx context.Context, s *transfer.Session, dir unfinished.Dir, uuid string) (d delivered, err error) {
	kept, r, err := take(dir, uuid)
	if err != nil {
		return d, err
	}
	defer func() {
		if err != nil {
			_ = kept.Close()
		}
	}()
	d.UUID = uuid
	record, err := s.API.GetContainer(ctx, uuid)
	switch {
	case arvados.IsStatus(err, http.StatusNotFound) && c.force:
		d.Record, d.Note = "unknown", "the cluster does not know the container"
	case arvados.IsStatus(err, http.StatusNotFound):
		return d, fmt.Errorf("%w (the result was to go to %s; --force saves it here all the same)", err, r.APIHost)
	case err != nil:
		return d, err
	}
	if d.Record == "" {
		d.Record = record.State
	}
	if r.DeliveredAs(record.State, record.Log, record.Output) {
		d.Note = "has all of it already: the supervisor died after that"
		return d, kept.Remove()
	}
	logPDH, outputPDH := "", ""
	if d.LogUUID, logPDH, err = c.saveResult(ctx, s, "log of container "+uuid, r.Log); err != nil {
		return d, fmt.Errorf("save log: %w", err)
	}
	if d.OutputUUID, outputPDH, err = c.saveResult(ctx, s, "output of container "+uuid, r.Output); err != nil {
		return d, fmt.Errorf("save output: %w", err)
	}
	if record.State == arvados.StateRunning {
		c.finishRecord(ctx, s, r, logPDH, outputPDH, &d)
	}
	return d, kept.Remove()
}

func (c *invocation) saveResult(ctx context.Context, s *transfer.Session, name string, coll *unfinished.Collection) (uuid, pdh string, err error) {
	if coll == nil {
		return "", "", nil
	}
	attrs := map[string]any{"name": name, "manifest_text": coll.Manifest}
	if len(coll.StorageClasses) > 0 {
		attrs["storage_classes_desired"] = coll.StorageClasses
	}
	if c.project != "" {
		attrs["owner_uuid"] = c.project
	}
	saved, err := s.API.CreateCollection(ctx, attrs, true, "uuid", "portable_data_hash")
	if arvados.IsStatus(err, http.StatusForbidden) {
		err = fmt.Errorf("%w (is it an administrator's token?)", err)
	}
	return saved.UUID, saved.PortableDataHash, err
}

// finishRecord sends what the supervisor would have sent. Only the token that
// locked the container may; a refusal leaves the record to its dispatcher.
func (c *invocation) finishRecord(ctx context.Context, s *transfer.Session, r unfinished.Result, logPDH, outputPDH string, d *delivered) {
	attrs := map[string]any{"state": r.State, "exit_code": r.ExitCode, "cost": r.Cost}
	if logPDH != "" {
		attrs["log"] = logPDH
	}
	if r.State == arvados.StateComplete && outputPDH != "" {
		attrs["output"] = outputPDH
	}
	if err := s.API.UpdateContainer(ctx, r.UUID, attrs); err != nil {
		d.Note = fmt.Sprintf("its record is left as it is: %v (is it the token of the dispatcher that locked the container?)", err)
		return
	}
	d.Updated, d.Record = true, r.State
}

func (d delivered) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", d.UUID)
	if d.Note != "" && d.LogUUID == "" && d.OutputUUID == "" {
		fmt.Fprintf(&b, "  record  %s\n", d.Note)
		return b.String()
	}
	for _, line := range []struct{ name, uuid string }{{"log", d.LogUUID}, {"output", d.OutputUUID}} {
		if line.uuid == "" {
			line.uuid = "none"
		}
		fmt.Fprintf(&b, "  %-7s %s\n", line.name, line.uuid)
	}
	switch {
	case d.Updated:
		fmt.Fprintf(&b, "  record  is now %s\n", d.Record)
	case d.Note != "":
		fmt.Fprintf(&b, "  record  %s\n", d.Note)
	default:
		fmt.Fprintf(&b, "  record  was %s already\n", d.Record)
	}
	return b.String()
}

func listUnfinished(entries []unfinished.Entry) string {
	if len(entries) == 0 {
		return "no unfinished results on this node\n"
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CONTAINER\tENDED AS\tEXIT CODE\tSAVED\tHOLDS\tWHY HERE")
	for _, e := range entries {
		code := "-"
		if e.ExitCode != nil {
			code = fmt.Sprint(*e.ExitCode)
		}
		var holds []string
		if e.Log != nil {
			holds = append(holds, "log")
		}
		if e.Output != nil {
			holds = append(holds, "output")
		}
		if holds == nil {
			holds = []string{"nothing"}
		}
		why := e.Reason
		switch {
		case e.InUse:
			why = "its supervisor still tries: " + why
		case why == "":
			why = "its supervisor has died"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.UUID, e.State, code, e.SavedAt.Local().Format(time.DateTime), strings.Join(holds, " and "), why)
	}
	_ = w.Flush() // to memory
	return b.String()
}
