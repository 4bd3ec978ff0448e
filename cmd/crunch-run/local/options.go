package local

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/docker/go-units"

	"crunch-oci/oci"
)

const usage = `Usage: crunch-run local --image FILE.tar [options] -- COMMAND [ARG...]

Runs one container on this machine, with nothing installed: an embedded Arvados
API and Keep are started, the image and the inputs are stored in Keep, and the
same supervisor that serves a cluster runs the command. Needs root.

The command sees each input read-only at /in/NAME. It starts in /out, which is
the output: what it leaves there is saved. Its standard output and error are
shown as they come.

Options:
  --image FILE        image tarball, as written by "docker save", "podman save" or
                      "skopeo copy ... docker-archive:FILE"; may be compressed (required)
  --input NAME=DIR    directory to be seen at /in/NAME (repeatable)
  --output DIR        where to put the output files (default: beside the log, in
                      /var/lib/crunch-run-local)
  --env KEY=VALUE     environment variable (repeatable)
  --cwd DIR           working directory (default /out)
  --vcpus N           CPUs (default 1)
  --ram SIZE          memory limit, e.g. 512MiB or 4GB (default 1GiB)
  --gpus N            GPUs, for this container alone (default 0)
  --gpu-stack STACK   cuda or rocm (default: what this machine has)
  --network KIND      none, bridge (the network, through this machine's address)
                      or host (default none; with --api bridge)
  --api               give the container a token for the embedded API, and a way
                      to reach it
  --keep-cluster      keep the embedded cluster's files after the run
  --verbose           show the supervisor's own messages too

Exit status: the command's own; 128+n if signal n killed it; 126 or 127 if it
cannot be executed or does not exist; 125 if anything else went wrong. The first
Ctrl-C stops the container and saves what there is, the second gives up.

Examples:
  skopeo copy docker://debian:12 docker-archive:debian.tar
  crunch-run local --image debian.tar -- cat /etc/os-release
  crunch-run local --image tools.tar --input reads=./fastq --output ./result \
      --vcpus 2 --ram 4GiB -- sh -c 'md5sum /in/reads/* > sums.txt'
`

// Networks of --network.
const (
	networkNone   = "none"
	networkBridge = "bridge"
	networkHost   = "host"
)

// minRAM is what a container is given at least, in bytes.
const minRAM = oci.MinRAM

// options are the parsed command line.
type options struct {
	image       string
	inputs      []input
	output      string
	env         map[string]string
	cwd         string
	vcpus       int
	ram         int64 // bytes
	gpus        int
	gpuStack    string // "": what the machine has
	network     string
	api         bool
	keepCluster bool
	verbose     bool
	command     []string
}

// input is a host directory to be seen at /in/<name>.
type input struct{ name, dir string }

// errHelp is a call for help.
var errHelp = errors.New("help")

// parse checks the command line as far as is possible without doing anything.
func parse(args []string) (options, error) {
	o := options{env: make(map[string]string), cwd: outputPath}
	var ram string
	fs := flag.NewFlagSet("crunch-run local", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.image, "image", "", "")
	fs.Func("input", "", o.addInput)
	fs.StringVar(&o.output, "output", "", "")
	fs.Func("env", "", o.addEnv)
	fs.StringVar(&o.cwd, "cwd", outputPath, "")
	fs.IntVar(&o.vcpus, "vcpus", 1, "")
	fs.StringVar(&ram, "ram", "1GiB", "")
	fs.StringVar(&o.network, "network", "", "")
	fs.IntVar(&o.gpus, "gpus", 0, "")
	fs.StringVar(&o.gpuStack, "gpu-stack", "", "")
	fs.BoolVar(&o.api, "api", false, "")
	fs.BoolVar(&o.keepCluster, "keep-cluster", false, "")
	fs.BoolVar(&o.verbose, "verbose", false, "")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, errHelp
		}
		return o, fmt.Errorf("%v", err)
	}
	o.command = fs.Args()
	if o.network == "" {
		o.network = networkNone
		if o.api {
			o.network = networkBridge
		}
	}
	var err error
	switch {
	case o.image == "":
		return o, fmt.Errorf("--image is missing: which image tarball shall be run?")
	case len(o.command) == 0:
		return o, fmt.Errorf("the command is missing; write it after --")
	case o.vcpus < 1:
		return o, fmt.Errorf("--vcpus %d: at least 1 is needed", o.vcpus)
	case !slices.Contains([]string{networkNone, networkBridge, networkHost}, o.network):
		return o, fmt.Errorf("--network %q: use none, bridge or host", o.network)
	case o.api && o.network == networkNone:
		return o, fmt.Errorf("--api needs --network bridge or host: without a network the API cannot be reached")
	case o.gpus < 0:
		return o, fmt.Errorf("--gpus %d: must not be negative", o.gpus)
	case !slices.Contains([]string{"", "cuda", "rocm"}, o.gpuStack):
		return o, fmt.Errorf("--gpu-stack %q: use cuda or rocm", o.gpuStack)
	case !filepath.IsAbs(o.cwd):
		return o, fmt.Errorf("--cwd %q: must be an absolute path in the container", o.cwd)
	}
	if o.ram, err = units.RAMInBytes(ram); err != nil || o.ram < minRAM {
		return o, fmt.Errorf("--ram %q: a size of at least 16MiB is needed, such as 512MiB or 4GB", ram)
	}
	if err := o.checkText(); err != nil {
		return o, err
	}
	return o, o.checkFiles()
}

// checkText refuses bytes that would silently become others: a container request
// is JSON, whose strings are Unicode.
func (o *options) checkText() error {
	texts := append([]string{o.cwd}, o.command...)
	for k, v := range o.env {
		texts = append(texts, k, v)
	}
	for _, in := range o.inputs {
		texts = append(texts, in.name)
	}
	for _, t := range texts {
		if !utf8.ValidString(t) {
			return fmt.Errorf("%q is not UTF-8, and a container request cannot carry anything else", t)
		}
	}
	return nil
}

func (o *options) addInput(s string) error {
	name, dir, ok := strings.Cut(s, "=")
	if !ok || name == "" || dir == "" {
		return fmt.Errorf("must be NAME=DIR")
	}
	if strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return fmt.Errorf("name %q must be a plain file name", name)
	}
	for _, in := range o.inputs {
		if in.name == name {
			return fmt.Errorf("two inputs are called %q", name)
		}
	}
	o.inputs = append(o.inputs, input{name, dir})
	return nil
}

func (o *options) addEnv(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return fmt.Errorf("must be KEY=VALUE")
	}
	o.env[k] = v
	return nil
}

// checkFiles finds out now what would otherwise fail after minutes of work.
func (o *options) checkFiles() error {
	fi, err := os.Stat(o.image)
	switch {
	case err != nil:
		return fmt.Errorf("--image: %v", err)
	case !fi.Mode().IsRegular():
		return fmt.Errorf("--image %s: is not a regular file", o.image)
	}
	for _, in := range o.inputs {
		fi, err := os.Stat(in.dir)
		switch {
		case err != nil:
			return fmt.Errorf("--input %s: %v", in.name, err)
		case !fi.IsDir():
			return fmt.Errorf("--input %s: %s is not a directory", in.name, in.dir)
		}
	}
	if o.output == "" {
		return nil
	}
	entries, err := os.ReadDir(o.output)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return fmt.Errorf("--output: %v", err)
	case len(entries) != 0:
		return fmt.Errorf("--output %s: is not empty; nothing in it would be safe", o.output)
	}
	return nil
}
