package oci

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// withArgs sets the command: the image's entrypoint followed by the request's
// command, or by the image's CMD if the request has none.
func withArgs(entrypoint, cmd, command []string) Edit {
	return func(spec *specs.Spec) error {
		if len(command) == 0 {
			command = cmd
		}
		// Docker's way to say in an image that there is none.
		if len(entrypoint) == 1 && entrypoint[0] == "" {
			entrypoint = nil
		}
		args := slices.Concat(entrypoint, command)
		if len(args) == 0 || args[0] == "" {
			return badRequest("no command: the request names none, and the image has no default")
		}
		for _, a := range args {
			if strings.IndexByte(a, 0) >= 0 {
				return badRequest("command argument %q contains a NUL byte", a)
			}
		}
		spec.Process.Args = args
		return nil
	}
}

// defaultPath is Docker's PATH for images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// homeAdded is the annotation of a container whose HOME was not asked for but is
// its user's; other users' commands in it get their own.
const homeAdded = "crunch-oci.home-added"

// withEnv sets exactly this environment: PATH, HOSTNAME and HOME as Docker
// adds them, over these the image's variables, over these the request's.
// Values are taken as they are: nothing is evaluated, and nothing of the
// host's environment gets in.
func withEnv(image []string, request map[string]string, home string) Edit {
	return func(spec *specs.Spec) error {
		env := newEnviron()
		env.set("PATH", defaultPath)
		if spec.Hostname != "" {
			env.set("HOSTNAME", spec.Hostname)
		}
		for _, kv := range image {
			name, value, ok := strings.Cut(kv, "=")
			if !ok || name == "" {
				continue // no variable; Docker drops these as well
			}
			env.set(name, value)
		}
		for _, name := range slices.Sorted(maps.Keys(request)) {
			if name == "" || strings.ContainsRune(name, '=') {
				return badRequest("environment variable name %q is not valid", name)
			}
			env.set(name, request[name])
		}
		// The runtime itself fills in a missing or empty HOME, from the uid;
		// here it is the home directory of the user that was named.
		if env.values["HOME"] == "" {
			env.set("HOME", home)
			if spec.Annotations == nil {
				spec.Annotations = make(map[string]string)
			}
			spec.Annotations[homeAdded] = home
		}
		for _, name := range env.names {
			if strings.IndexByte(name+env.values[name], 0) >= 0 {
				return badRequest("environment variable %q contains a NUL byte", name)
			}
		}
		spec.Process.Env = env.list()
		return nil
	}
}

// environ is a set of variables in the order in which they first appeared.
type environ struct {
	names  []string
	values map[string]string
}

func newEnviron() *environ { return &environ{values: make(map[string]string)} }

func (e *environ) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

// list returns the variables as "NAME=value".
func (e *environ) list() []string {
	var all []string
	for _, name := range e.names {
		all = append(all, name+"="+e.values[name])
	}
	return all
}

// withCwd sets the working directory. The runtime creates it, inside the
// container, if it does not exist.
func withCwd(imageDir, cwd string) Edit {
	return func(spec *specs.Spec) error {
		if strings.IndexByte(imageDir+cwd, 0) >= 0 {
			return badRequest("working directory %q contains a NUL byte", cwd)
		}
		// Both are cleaned as absolute paths, so ".." ends at the root.
		dir := path.Join("/", imageDir)
		if path.IsAbs(cwd) {
			dir = path.Clean(cwd)
		} else {
			dir = path.Join(dir, cwd)
		}
		spec.Process.Cwd = dir
		return nil
	}
}

// withNoNewPrivileges sets the no_new_privs attribute (prctl(2)).
func withNoNewPrivileges(on bool) Edit {
	return func(spec *specs.Spec) error {
		spec.Process.NoNewPrivileges = on
		return nil
	}
}
