package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"crunch-oci/internal/regular"
)

// DefaultSiteFile is the site file of a node that does not say otherwise. The
// dispatcher gives a listing neither flags nor variables, so what a listing
// needs to know must be in this file.
const DefaultSiteFile = "/etc/crunch-run/config.yml"

// The site file itself is found like a setting: flag, variable, default.
const (
	siteFileFlag = "site-config"
	siteFileEnv  = "CRUNCH_RUN_SITE_CONFIG"
)

// maxSiteFile bounds the site file in bytes.
const maxSiteFile = 1 << 20

// Sources are the places site settings come from.
type Sources struct {
	// Flags are the settings given on the command line, by name
	// (Flags.Settings).
	Flags map[string]string
	// Lookup is os.LookupEnv or like it; nil means no environment.
	Lookup func(string) (string, bool)
	// Environ is os.Environ() or like it, for the names of variables that look
	// like settings and are none; nil means not to look for them.
	Environ []string
	// DefaultFile is DefaultSiteFile if empty.
	DefaultFile string
}

// Load gives every setting its value: that of the flag, else of the variable,
// else of the site file, else the default. Empty variables count as not set. A
// site file that is named but missing is an error, a missing default one is
// not. All errors are reported, each with the place of the value; settings that
// have one have their defaults then, for callers that must go on.
func Load(src Sources) (Site, error) {
	lookup := src.Lookup
	if lookup == nil {
		lookup = func(string) (string, bool) { return "", false }
	}
	var errs []error
	file, err := loadSiteFile(src, lookup)
	if err != nil {
		errs = append(errs, err)
	}
	for name := range src.Flags {
		if name != siteFileFlag && findSetting(name) == nil {
			errs = append(errs, fmt.Errorf("flag -%s: no such setting", name))
		}
	}
	errs = append(errs, checkVariables(src.Environ)...)
	var site Site
	for _, d := range settings {
		text, origin := d.def, "default"
		if v, ok := file[d.name]; ok {
			text, origin = v.text, v.origin
		}
		if v, _ := lookup(d.envName()); v != "" {
			text, origin = v, d.envName()
		}
		if v, ok := src.Flags[d.name]; ok {
			text, origin = v, "flag -"+d.name
		}
		if err := d.parse(&site, text); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %q: %w", origin, d.name, text, err))
			if err := d.parse(&site, d.def); err != nil {
				panic(err) // a mistake in the table
			}
			continue
		}
		site.described = append(site.described, Setting{d.name, d.show(&site), origin, d.usage})
	}
	if len(errs) == 0 {
		errs = append(errs, site.checkTogether())
	}
	return site, errors.Join(errs...)
}

// otherVariables begin like settings and have other purposes.
var otherVariables = []string{siteFileEnv, "CRUNCH_RUN_READY_FD", "CRUNCH_RUN_MOUNTNS"}

// checkVariables finds variables that are nearly settings: a misspelt limit must
// not leave the default in force unnoticed.
func checkVariables(environ []string) (errs []error) {
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "CRUNCH_RUN_") || value == "" || slices.Contains(otherVariables, name) {
			continue
		}
		if !slices.ContainsFunc(settings, func(d setting) bool { return d.envName() == name }) {
			errs = append(errs, fmt.Errorf("%s: no such setting", name))
		}
	}
	return errs
}

// checkTogether finds settings that are right each but not together.
func (s *Site) checkTogether() error {
	inside := func(a, b string) bool { return a == b || strings.HasPrefix(a, b+"/") }
	// Cleaning up after a run must never reach into the store, nor eviction
	// into a running container.
	if inside(s.StoreDir, s.RuntimeDir) || inside(s.RuntimeDir, s.StoreDir) {
		return fmt.Errorf("store-dir (%s) and runtime-dir (%s): neither may be inside the other", s.StoreDir, s.RuntimeDir)
	}
	if s.UserNamespaceCount != 0 && s.Network == NetworkHost {
		return errors.New("network: host and user-namespace: a container in a user namespace cannot use the host's network")
	}
	return nil
}

// loadSiteFile reads the site file that the sources name.
func loadSiteFile(src Sources, lookup func(string) (string, bool)) (map[string]fileValue, error) {
	path, origin := src.DefaultFile, ""
	if path == "" {
		path = DefaultSiteFile
	}
	if v, _ := lookup(siteFileEnv); v != "" {
		path, origin = v, siteFileEnv
	}
	if v, ok := src.Flags[siteFileFlag]; ok {
		path, origin = v, "flag -"+siteFileFlag
	}
	f, err := regular.Open(path, os.O_RDONLY)
	if err != nil {
		if origin == "" && errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if origin != "" {
			err = fmt.Errorf("%s: %w", origin, err)
		}
		return nil, fmt.Errorf("site file: %w", err)
	}
	defer f.Close()
	if err := checkWriters(f); err != nil {
		return nil, fmt.Errorf("site file: %s: %w", path, err)
	}
	return readSiteFile(path, f)
}

// checkWriters refuses a file that others than root, this user and the file's group
// can write: it may name a program for root to run (keep-mount-command).
func checkWriters(f *os.File) error {
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !regular.Ours(info):
		return errors.New("belongs to another user, who could change it (chown root)")
	case info.Mode().Perm()&0o002 != 0:
		return errors.New("everybody can write to it (chmod o-w)")
	}
	return nil
}
