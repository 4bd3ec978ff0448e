package capture

import (
	"maps"
	"path"
	"slices"
	"strings"

	"crunch-oci/arvados"
)

// table is the container's mount table, with cleaned targets.
type table struct {
	output  string
	mounts  map[string]arvados.Mount
	targets []string // keys of mounts, in byte order: parents before children
	secrets map[string]bool
	other   map[string]bool // bind mounts that no record names
}

func newTable(c Config) *table {
	t := &table{
		output:  path.Clean(c.OutputPath),
		mounts:  make(map[string]arvados.Mount),
		secrets: make(map[string]bool),
		other:   make(map[string]bool),
	}
	// Standard streams are no places; other relative targets are never mounted.
	for target, m := range c.Mounts {
		if path.IsAbs(target) {
			t.mounts[path.Clean(target)] = m
		}
	}
	for target := range c.SecretMounts {
		if path.IsAbs(target) {
			t.secrets[path.Clean(target)] = true
		}
	}
	for _, target := range c.OtherBinds {
		t.other[path.Clean(target)] = true
	}
	t.targets = slices.Sorted(maps.Keys(t.mounts))
	return t
}

// containing returns the innermost mount that p is, or is below.
func (t *table) containing(p string) (target string, m arvados.Mount, ok bool) {
	for target = range upwards(p) {
		if m, ok = t.mounts[target]; ok {
			return target, m, true
		}
	}
	return "", m, false
}

// isSecret reports whether p is, or is below, a secret mount that is inside the
// mount with the given target.
func (t *table) isSecret(p, target string) bool {
	for secret := range upwards(p) {
		if t.secrets[secret] {
			return len(secret) > len(target)
		}
	}
	return false
}

// upwards yields p and its parents, "/" last.
func upwards(p string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for yield(p) && p != "/" && p != "." {
			p = path.Dir(p)
		}
	}
}

// below returns the targets strictly below p, parents before children.
func (t *table) below(p string) []string {
	prefix := strings.TrimSuffix(p, "/") + "/"
	start, _ := slices.BinarySearch(t.targets, prefix)
	end := start
	for end < len(t.targets) && strings.HasPrefix(t.targets[end], prefix) {
		end++
	}
	if end > start && t.targets[start] == prefix { // "/"
		start++
	}
	return t.targets[start:end]
}

// inOutput reports whether p is strictly below the output path.
func (t *table) inOutput(p string) bool {
	return strings.HasPrefix(p, strings.TrimSuffix(t.output, "/")+"/") && p != t.output
}

// isStaged reports whether a mount was copied into the output directory, so
// that what is there are ordinary files.
func (t *table) isStaged(target string, m arvados.Mount) bool {
	if !t.inOutput(target) {
		return false
	}
	return m.Kind == "json" || m.Kind == "text" || m.Kind == "collection" && m.Writable
}

// isLocal reports whether p lies in the local output directory.
func (t *table) isLocal(p string) bool {
	target, m, ok := t.containing(p)
	if !ok || t.isSecret(p, target) || t.mounts[t.output].Kind != "tmp" {
		return false
	}
	return target == t.output || t.isStaged(target, m)
}

// isMountPoint reports whether something else is mounted at p: what lies there
// on the host, or in the collection around it, was not visible in the container.
func (t *table) isMountPoint(p string) bool {
	m, ok := t.mounts[p]
	if !ok || p == t.output || t.isStaged(p, m) {
		return t.other[p]
	}
	return m.Kind != "keep" && m.Kind != "file" || t.other[p]
}

// rel names p in log lines: relative to the output path, or "*".
func (t *table) rel(p string) string {
	if !t.inOutput(p) {
		return "*"
	}
	return t.host(p)
}

// host is the path of p relative to the output directory.
func (t *table) host(p string) string {
	if p == t.output {
		return "."
	}
	return strings.TrimPrefix(p[len(t.output):], "/")
}
