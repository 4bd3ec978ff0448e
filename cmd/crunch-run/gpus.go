package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/gpu/device"
	"crunch-oci/gpu/host"
	"crunch-oci/gpu/lease"
	"crunch-oci/gpu/nvidia"
	"crunch-oci/supervisor/config"
)

const gpusUsage = `Usage: crunch-run gpus [--json]

Lists the GPUs of this node as containers can get them, and which container has
which. With --json: everything that is known of them. Needs root.
`

// runGPUs lists the GPUs of this node.
func runGPUs(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("crunch-run gpus", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	asJSON := fs.Bool("json", false, "")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, gpusUsage)
		return 0
	case err != nil:
		return fail(stderr, 2, "crunch-run gpus: %v (try -h)", err)
	case fs.NArg() > 0:
		return fail(stderr, 2, "crunch-run gpus: too many arguments (try -h)")
	}
	if os.Geteuid() != 0 {
		return fail(stderr, 1, "crunch-run gpus must be run as root: it looks into the locks of other runs")
	}
	site, err := config.Load(config.Sources{Lookup: os.LookupEnv, Environ: os.Environ()})
	if err != nil {
		return fail(stderr, 1, "crunch-run gpus: %v", err)
	}
	ctx, _, release := stopSignals(false)
	defer release()
	all, err := inventories(ctx, site, stderr)
	if err != nil {
		return fail(stderr, 1, "crunch-run gpus: this node has no usable GPU")
	}
	if *asJSON {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		if err := e.Encode(withHolders(all, wire.GPUNode(site).Locks)); err != nil {
			return fail(stderr, 1, "crunch-run gpus: %v", err)
		}
		return 0
	}
	printInventories(stdout, all, wire.GPUNode(site).Locks)
	return 0
}

// inventories are those of all stacks that the node has GPUs of. A stack whose
// driver fails is reported; it is an error if there is no other.
func inventories(ctx context.Context, site config.Site, stderr io.Writer) (all []device.Inventory, err error) {
	node := wire.GPUNode(site)
	for _, stack := range []device.Stack{device.CUDA, device.ROCm} {
		inv, helper, notes, err2 := node.Inventory(ctx, stack)
		if helper != nil {
			helper.Close()
		}
		for _, n := range notes {
			fmt.Fprintln(stderr, n)
		}
		if err2 != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", stack, err2))
			if !errors.Is(err2, device.ErrNone) {
				fmt.Fprintf(stderr, "%s: %v\n", stack, err2)
			}
			continue
		}
		all = append(all, inv)
	}
	if len(all) > 0 {
		return all, nil
	}
	return nil, err
}

// heldInventory is an inventory that says who has what.
type heldInventory struct {
	device.Inventory
	Devices []heldDevice `json:"devices"`
}

type heldDevice struct {
	device.Device
	// Container is who has it; "" if nobody has.
	Container string `json:"container"`
}

func withHolders(all []device.Inventory, locks lease.Dir) []heldInventory {
	list := []heldInventory{}
	for _, inv := range all {
		held := heldInventory{Inventory: inv, Devices: []heldDevice{}}
		for _, d := range inv.Devices {
			held.Devices = append(held.Devices, heldDevice{d, locks.Holder(d.UUID).UUID})
		}
		list = append(list, held)
	}
	return list
}

func printInventories(w io.Writer, all []device.Inventory, locks lease.Dir) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "GPU\tSTACK\tUUID\tNAME\tMEMORY\tTARGET\tCONTAINER")
	for _, inv := range all {
		for _, d := range inv.Devices {
			holder := locks.Holder(d.UUID).UUID
			if d.MIGMode && d.Instance == nil {
				holder = "(MIG)"
			}
			if holder == "" {
				holder = "-"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d MiB\t%s\t%s\n", d.Label(), inv.Stack, d.UUID, d.Name, d.Memory>>20, d.Target, holder)
		}
	}
	_ = table.Flush()
	for _, inv := range all {
		for _, n := range inv.Notes {
			fmt.Fprintln(w, n)
		}
	}
}

// runNVML is the process that has NVIDIA's library loaded, a child of the
// supervisor.
func runNVML(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) != 2 {
		return fail(stderr, 2, "crunch-run %s is started by crunch-run itself", wire.NVMLRole)
	}
	if err := nvidia.Serve(stdin, stdout, args[1], host.At(args[0])); err != nil {
		return fail(stderr, 1, "%v", err)
	}
	return 0
}
