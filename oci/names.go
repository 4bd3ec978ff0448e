package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Names are what a container in a network of its own finds in /etc.
type Names struct {
	// Addresses are the container's own, under which it finds its host name.
	Addresses []netip.Addr
	// Hosts are further lines for /etc/hosts, without line breaks.
	Hosts []string
	// Resolv is the content of /etc/resolv.conf.
	Resolv []byte
}

// SetNames changes /etc/hosts and /etc/resolv.conf of a container that has been
// created from the bundle in dir, and has not been started: its addresses are
// known only when it exists. Files that the container does not use are left out.
func SetNames(dir string, n Names) error {
	spec, err := readBundle(dir)
	if err != nil {
		return err
	}
	hosts := localHosts
	if len(n.Addresses) == 0 {
		hosts += "127.0.0.1\t" + spec.Hostname + "\n"
	}
	for _, a := range n.Addresses {
		hosts += a.String() + "\t" + spec.Hostname + "\n"
	}
	for _, line := range n.Hosts {
		hosts += strings.ReplaceAll(line, "\n", " ") + "\n"
	}
	for name, text := range map[string]string{"hosts": hosts, "resolv.conf": string(n.Resolv)} {
		if err := rewrite(filepath.Join(dir, name), text); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("tell the container its names: %w", err)
		}
	}
	return nil
}

// rewrite gives a file, which is mounted into the container already, another
// content.
func rewrite(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
