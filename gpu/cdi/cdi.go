// Package cdi takes the edits of a container from CDI specifications that exist
// on the node (/etc/cdi, /var/run/cdi), for sites that prefer what their
// vendor's tool has written to what this program finds out.
//
// Hooks in these files are never run. Those of NVIDIA's that only make links
// and refresh the loader's cache are translated (see package edit); others are
// named in the log.
package cdi

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	cdilib "tags.cncf.io/container-device-interface/pkg/cdi"
	cdispec "tags.cncf.io/container-device-interface/specs-go"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/elfso"
)

// Kinds of devices by stack.
var kinds = map[device.Stack]string{device.CUDA: "nvidia.com/gpu", device.ROCm: "amd.com/gpu"}

// Edits returns the edits that the node's specifications in dirs, the last of
// which wins, have for devices.
func Edits(dirs []string, stack device.Stack, devices []device.Device) (e edit.Edits, notes []string, err error) {
	cache, err := cdilib.NewCache(cdilib.WithAutoRefresh(false), cdilib.WithSpecDirs(dirs...))
	if err != nil {
		return e, nil, fmt.Errorf("CDI: %w", err)
	}
	for file, errs := range cache.GetErrors() {
		notes = append(notes, fmt.Sprintf("CDI: %s: %v", file, errors.Join(errs...)))
	}
	slices.Sort(notes)
	vendor, class, _ := strings.Cut(kinds[stack], "/")
	specs := make(map[*cdilib.Spec]bool)
	var all []*cdispec.ContainerEdits
	for _, d := range devices {
		found := find(cache, kinds[stack], d)
		if found == nil {
			return e, notes, fmt.Errorf("%w: no CDI specification in %s describes GPU %s (%s) as a device of kind %s/%s: write them again, or set gpu to auto",
				device.ErrNoDriver, strings.Join(dirs, ", "), d.Label(), d.UUID, vendor, class)
		}
		if s := found.GetSpec(); !specs[s] {
			specs[s] = true
			all = append(all, &s.ContainerEdits)
		}
		all = append(all, &found.ContainerEdits)
	}
	t := translator{}
	for _, c := range all {
		if err := t.add(c); err != nil {
			return e, notes, err
		}
	}
	t.findLibraries()
	return t.edits, append(notes, t.notes...), nil
}

// find finds a device by any of the names that vendors' tools give them.
func find(cache *cdilib.Cache, kind string, d device.Device) *cdilib.Device {
	names := []string{d.UUID, d.Label()}
	if d.Instance == nil {
		names = append(names, fmt.Sprintf("gpu%d", d.Index))
	} else {
		names = append(names, fmt.Sprintf("mig%d:%d", d.Index, d.Instance.Index))
	}
	for _, name := range names {
		if found := cache.GetDevice(kind + "=" + name); found != nil {
			return found
		}
	}
	return nil
}

type translator struct {
	edits edit.Edits
	notes []string
}

func (t *translator) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(t.notes, text) {
		t.notes = append(t.notes, text)
	}
}

func (t *translator) add(c *cdispec.ContainerEdits) error {
	e := edit.Edits{Env: c.Env, Groups: c.AdditionalGIDs}
	for _, n := range c.DeviceNodes {
		node, err := readNode(n)
		if err != nil {
			return fmt.Errorf("%w: CDI: %w", device.ErrNoDriver, err)
		}
		e.Nodes = append(e.Nodes, node)
	}
	for _, m := range c.Mounts {
		if m.Type != "" && m.Type != "bind" && m.Type != "none" {
			t.note("CDI: a mount of type %s at %s is left out", m.Type, m.ContainerPath)
			continue
		}
		if _, err := os.Stat(m.HostPath); err != nil {
			return fmt.Errorf("%w: CDI: a file that the specification names is missing: %w: write it again", device.ErrNoDriver, err)
		}
		e.Mounts = append(e.Mounts, edit.Mount{Source: m.HostPath, Target: path.Clean(m.ContainerPath), Socket: slices.Contains(m.Options, "noexec")})
	}
	if len(c.NetDevices) > 0 || c.IntelRdt != nil {
		t.note("CDI: network devices and Intel RDT are left out")
	}
	t.edits.Add(e)
	for _, h := range c.Hooks {
		t.hook(h)
	}
	return nil
}

// readNode completes a device node from the one on the node.
func readNode(n *cdispec.DeviceNode) (edit.Node, error) {
	host := n.HostPath
	if host == "" {
		host = n.Path
	}
	var st unix.Stat_t
	if err := unix.Stat(host, &st); err != nil {
		return edit.Node{}, &os.PathError{Op: "stat", Path: host, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || n.Type != "" && n.Type != "c" && n.Type != "u" {
		return edit.Node{}, fmt.Errorf("%s is not a character device", host)
	}
	node := edit.Node{
		Path: path.Clean(n.Path), Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid,
	}
	if n.Major != 0 && (n.Major != node.Major || n.Minor != node.Minor) {
		return node, fmt.Errorf("%s is device %d:%d, the specification says %d:%d: write it again", host, node.Major, node.Minor, n.Major, n.Minor)
	}
	if n.FileMode != nil {
		node.Mode = uint32(n.FileMode.Perm())
	}
	if n.UID != nil {
		node.UID = *n.UID
	}
	if n.GID != nil {
		node.GID = *n.GID
	}
	return node, nil
}

// harmless are hooks of NVIDIA's that are not needed here: the loader's cache
// is made with package edit, device nodes have the modes that are asked for, and
// the device filter keeps a container from making others.
var harmless = []string{"enable-cuda-compat", "chmod", "disable-device-node-modification"}

// hook does what a known hook would have done.
func (t *translator) hook(h *cdispec.Hook) {
	args := h.Args
	i := slices.IndexFunc(args, func(a string) bool {
		return a == "create-symlinks" || a == "update-ldcache" || slices.Contains(harmless, a)
	})
	if i < 0 {
		t.note("CDI: the hook %q is not run", strings.Join(append([]string{h.Path}, args...), " "))
		return
	}
	for j := i + 1; j < len(args); j++ {
		name, value, ok := strings.Cut(args[j], "=")
		if !ok && j+1 < len(args) {
			value = args[j+1]
			j++
		}
		switch {
		case args[i] == "create-symlinks" && name == "--link":
			target, link, ok := strings.Cut(value, "::")
			if ok && path.IsAbs(link) && target != "" {
				t.edits.Add(edit.Edits{Links: []edit.Link{{Path: path.Clean(link), Target: target}}})
			}
		case args[i] == "update-ldcache" && name == "--folder":
			if path.IsAbs(value) {
				t.edits.Add(edit.Edits{Folders: []string{path.Clean(value)}})
			}
		}
	}
}

// findLibraries finds the libraries among the mounts, as ldconfig would in the
// directories it is told.
func (t *translator) findLibraries() {
	for _, m := range t.edits.Mounts {
		if !slices.Contains(t.edits.Folders, path.Dir(m.Target)) || !strings.Contains(filepath.Base(m.Target), ".so") {
			continue
		}
		f, err := os.Open(m.Source)
		if err != nil {
			continue
		}
		info, err := elfso.Read(f)
		_ = f.Close()
		if err != nil || info.Soname == "" {
			continue
		}
		at := path.Join(path.Dir(m.Target), info.Soname)
		e := edit.Edits{Libraries: []edit.Library{{Name: info.Soname, Path: at}}}
		linked := slices.ContainsFunc(t.edits.Links, func(l edit.Link) bool { return l.Path == at })
		if at != m.Target && !linked {
			e.Links = []edit.Link{{Path: at, Target: path.Base(m.Target)}}
		}
		t.edits.Add(e)
	}
	// Links such as libcuda.so are names to the loader as well.
	for _, l := range t.edits.Links {
		if name := path.Base(l.Path); name == "libcuda.so" {
			t.edits.Add(edit.Edits{Libraries: []edit.Library{{Name: name, Path: l.Path}}})
		}
	}
}
