package mounts

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"crunch-oci/arvados"
)

var (
	errOutputPath    = errors.New("output path does not correspond to a writable mount point")
	errUUIDAndPDH    = errors.New("cannot specify both 'uuid' and 'portable_data_hash' for a collection mount")
	errWritableUUID  = errors.New("writing to existing collections currently not permitted")
	errWritablePDH   = errors.New("can never write to a collection specified by portable data hash")
	errNoCollection  = errors.New("stdin needs the portable_data_hash or the uuid of a collection")
	errRootIsTarget  = errors.New(`mount target "/" would hide the whole image`)
	standardStreams  = []string{"stdin", "stdout", "stderr"}
	withoutEffect    = []string{"keep", "file"}
	belowOutputKinds = []string{"collection", "text", "json"}
)

// target is one entry of the mount tables.
type target struct {
	given  string // as in the record
	path   string // cleaned, or the name of a standard stream
	secret bool
	arvados.Mount
}

// targets checks the secrets and returns all mounts in the order in which they
// are validated and numbered.
func (p *planner) targets() ([]target, error) {
	var all []target
	regular := make(map[string]bool)
	for given, m := range p.Mounts {
		all = append(all, target{given, cleanTarget(given), false, m})
		regular[cleanTarget(given)] = true
	}
	for _, given := range slices.Sorted(maps.Keys(p.SecretMounts)) {
		m := p.SecretMounts[given]
		if regular[cleanTarget(given)] {
			return nil, fmt.Errorf("secret mount %q conflicts with regular mount", given)
		}
		if m.Kind != "json" && m.Kind != "text" {
			return nil, fmt.Errorf("secret mount %q type is %q but only 'json' and 'text' are permitted", given, m.Kind)
		}
		all = append(all, target{given, cleanTarget(given), true, m})
	}
	if p.CABundle != "" && !slices.ContainsFunc(all, func(t target) bool { return t.path == CABundleTarget }) {
		p.bind(Bind{Source: p.CABundle, Target: CABundleTarget, ReadOnly: true, Kind: BindCABundle})
	}
	slices.SortFunc(all, func(a, b target) int { return strings.Compare(a.given, b.given) })
	return all, nil
}

// cleanTarget makes targets comparable: "/out/" and "/out" are one place.
func cleanTarget(given string) string {
	if strings.HasPrefix(given, "/") {
		return path.Clean(given)
	}
	return given
}

// add validates one target and plans it.
func (p *planner) add(t target) error {
	switch t.path {
	case "stdout", "stderr":
		return p.addOutputStream(t)
	case "stdin":
		return p.addStdin(t)
	}
	rel, inOutput := below(t.path, p.plan.OutputPath)
	if inOutput && !slices.Contains(belowOutputKinds, t.Kind) {
		return fmt.Errorf("only mount points of kind 'collection', 'text' or 'json' are supported underneath the output_path for %q, was %q", t.given, t.Kind)
	}
	if slices.Contains(withoutEffect, t.Kind) {
		return nil
	}
	if err := p.checkTarget(t); err != nil {
		return err
	}
	switch t.Kind {
	case "collection":
		return p.addCollection(t, rel, inOutput)
	case "tmp":
		dir := p.newName("tmp")
		p.plan.TmpDirs = append(p.plan.TmpDirs, dir)
		p.bind(Bind{Source: dir, Target: t.path, Kind: BindTmp})
		if t.path == p.plan.OutputPath {
			p.plan.OutputDir = dir
		}
		return nil
	case "json", "text":
		return p.addText(t, rel, inOutput)
	}
	p.warn("mount %q is ignored: unknown kind %q", t.given, t.Kind)
	return nil
}

// checkTarget refuses targets that no engine could mount.
func (p *planner) checkTarget(t target) error {
	switch {
	case t.path == "/":
		return errRootIsTarget
	case !strings.HasPrefix(t.path, "/"):
		return fmt.Errorf("mount target %q is neither an absolute path nor one of %s", t.given, strings.Join(standardStreams, ", "))
	case strings.IndexByte(t.path, 0) >= 0:
		return fmt.Errorf("mount target %q contains a null character", t.given)
	}
	if other, ok := p.seen[t.path]; ok {
		return fmt.Errorf("mount targets %q and %q are the same place", other, t.given)
	}
	p.seen[t.path] = t.given
	return nil
}

func (p *planner) bind(b Bind) { p.plan.Binds = append(p.plan.Binds, b) }

func (p *planner) warn(format string, args ...any) {
	p.plan.Warnings = append(p.plan.Warnings, fmt.Sprintf(format, args...))
}

// checkHidden finds what would be written into the output directory below the
// target of a bind mount, where neither the container nor output capture ever
// sees it.
func (p *planner) checkHidden() error {
	for _, b := range p.plan.Binds {
		dir, ok := below(b.Target, p.plan.OutputPath)
		if !ok {
			continue
		}
		hides := func(name string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
		for _, s := range p.plan.Staged {
			if hides(s.Path) {
				p.warn("mount %q has no effect: it lies inside the read-only mount %q", path.Join(p.plan.OutputPath, s.Path), b.Target)
			}
		}
		for stream, f := range map[string]*OutputFile{"stdout": p.plan.Stdout, "stderr": p.plan.Stderr} {
			if f != nil && hides(f.Path) {
				return fmt.Errorf("%s path %q lies inside the read-only mount %q: what is written there would be lost", stream, path.Join(p.plan.OutputPath, f.Path), b.Target)
			}
		}
	}
	return nil
}
