package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// configFile is the name the OCI runtime specification gives to the
// specification in a bundle.
const configFile = "config.json"

// etcFiles are the files that WriteBundle makes in the bundle for the mounts
// of etcMounts. Each content function takes the host's file, if there is one.
var etcFiles = []struct {
	target, name string
	content      func(spec *specs.Spec, host []byte) []byte
}{
	{"/etc/hosts", "hosts", hostsFile},
	{"/etc/hostname", "hostname", hostnameFile},
	{"/etc/resolv.conf", "resolv.conf", resolvFile},
}

// WriteBundle writes spec to dir, which is made if it is missing and stays
// closed to other users: config.json, and the files below /etc that the
// standard mounts refer to. "runc run" accepts the result.
func WriteBundle(dir string, spec *specs.Spec) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	for _, f := range etcFiles {
		used := slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Source == f.name })
		if !used {
			continue
		}
		host, err := os.ReadFile(f.target)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("write bundle: %w", err)
		}
		if err := writeFile(filepath.Join(dir, f.name), f.content(spec, host), 0o644); err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
		if ids := idsOf(spec); !ids.IsZero() {
			if err := ids.Give(filepath.Join(dir, f.name)); err != nil {
				return fmt.Errorf("write bundle: %w", err)
			}
		}
	}
	b, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	// The environment may hold tokens.
	if err := writeFile(filepath.Join(dir, configFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// writeFile writes a file with this mode whatever the umask.
func writeFile(name string, b []byte, mode os.FileMode) error {
	if err := os.WriteFile(name, b, mode); err != nil {
		return err
	}
	return os.Chmod(name, mode)
}

// readBundle reads a bundle and makes its paths absolute.
func readBundle(dir string) (*specs.Spec, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, fmt.Errorf("read bundle: %s: %w", filepath.Join(dir, configFile), err)
	}
	if spec.Root == nil || spec.Process == nil || spec.Linux == nil || len(spec.Process.Args) == 0 {
		return nil, fmt.Errorf("read bundle: %s lacks root, linux or process with arguments", filepath.Join(dir, configFile))
	}
	if !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = filepath.Join(dir, spec.Root.Path)
	}
	for i, m := range spec.Mounts {
		bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		if bind && !filepath.IsAbs(m.Source) {
			spec.Mounts[i].Source = filepath.Join(dir, m.Source)
		}
	}
	return spec, nil
}

// ownNetwork tells whether the container has a network namespace of its own.
func ownNetwork(spec *specs.Spec) bool {
	return slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.NetworkNamespace
	})
}

// localHosts are the names of the loopback interface.
const localHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

// hostsFile lets a container without a network resolve itself: programs ask
// for the address of their own host name. With the host's network, the host's
// names are known as well.
func hostsFile(spec *specs.Spec, host []byte) []byte {
	if !ownNetwork(spec) && spec.Hostname == "" {
		return host
	}
	text := localHosts
	if !ownNetwork(spec) {
		text = string(host)
	}
	return []byte(text + "127.0.0.1\t" + spec.Hostname + "\n")
}

func hostnameFile(spec *specs.Spec, host []byte) []byte {
	if spec.Hostname == "" {
		return host
	}
	return []byte(spec.Hostname + "\n")
}

// resolvFile is the host's with the host's network, and empty without one: no
// name server can be reached, and nothing is said about the host's.
func resolvFile(spec *specs.Spec, host []byte) []byte {
	if ownNetwork(spec) {
		return nil
	}
	return host
}
