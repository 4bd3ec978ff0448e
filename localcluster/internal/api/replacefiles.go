package api

import (
	"encoding/json"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"

	"crunch-oci/keep"
	"crunch-oci/localcluster/internal/manifests"
	"crunch-oci/localcluster/internal/store"
)

// replaceFiles is the manifest that the parameter replace_files makes of current,
// or nil if it was not given: paths of the collection get what is at others, of
// it as it was ("current/PATH"), of the manifest_text in the request, or of a
// collection that the caller can read ("PDH/PATH"); "" removes. Nothing else
// changes, whatever others save at the same time. See doc.arvados.org, API methods
// of collections, replace_files. replace_segments is refused: to pass it over
// would be wrong.
func (c *call) replaceFiles(current string, given store.Record) (*string, error) {
	if !c.params.values["replace_segments"].unset() {
		return nil, invalid("replace_segments is not supported by this cluster: send the manifest_text that results")
	}
	v := c.params.values["replace_files"]
	if v.unset() {
		return nil, nil
	}
	var replace map[string]string
	if err := json.Unmarshal(v.raw(), &replace); err != nil {
		return nil, invalid("replace_files: not a JSON object of strings")
	}
	if len(replace) == 0 {
		return nil, nil
	}
	targets := slices.Sorted(maps.Keys(replace))
	if err := checkTargets(targets, replace); err != nil {
		return nil, err
	}
	result, err := keep.NewCollection(current, nil)
	if err != nil {
		return nil, invalid("replace_files: %v", err)
	}
	sources, err := c.replaceSources(current, given, replace)
	if err != nil {
		return nil, err
	}
	for _, target := range targets {
		if err := replaceOne(result, target, replace[target], sources); err != nil {
			return nil, invalid("replace_files: %q: %v", target, err)
		}
	}
	text, err := result.MarshalManifest(c.r.Context())
	if err != nil {
		return nil, invalid("replace_files: %v", err)
	}
	return &text, nil
}

// checkTargets refuses paths that are not canonical, and a source for a
// directory below which there is another target.
func checkTargets(targets []string, replace map[string]string) error {
	for _, target := range targets {
		if !strings.HasPrefix(target, "/") || path.Clean(target) != target {
			return invalid("replace_files: %q is not an absolute canonical path", target)
		}
		for dir := target; dir != "/"; {
			if dir = path.Dir(dir); replace[dir] != "" {
				return invalid("replace_files: %q lies below another target", target)
			}
		}
	}
	return nil
}

// replaceSources reads the collections that sources name, by their first part.
func (c *call) replaceSources(current string, given store.Record, replace map[string]string) (map[string]*keep.Collection, error) {
	sources := make(map[string]*keep.Collection)
	for _, source := range replace {
		name, _, _ := strings.Cut(source, "/")
		if source == "" || sources[name] != nil {
			continue
		}
		text := current
		switch {
		case name == "manifest_text":
			text = given.Str("manifest_text")
			if _, err := manifests.Check(text, c.checkSignature); err != nil {
				var refused *apiError
				if errors.As(err, &refused) {
					return nil, err
				}
				return nil, invalid("Manifest text %v", err)
			}
		case name == "current":
		case pdhPattern.MatchString(name):
			rec, err := c.findByPDH(name, false)
			if err != nil {
				return nil, err
			}
			text = rec.Str("manifest_text")
		default:
			return nil, invalid("replace_files: invalid source %q", source)
		}
		var err error
		if sources[name], err = keep.NewCollection(text, nil); err != nil {
			return nil, invalid("replace_files: %v", err)
		}
	}
	if given.Str("manifest_text") != "" && sources["manifest_text"] == nil {
		return nil, invalid("replace_files: manifest_text is given but not used")
	}
	return sources, nil
}

func replaceOne(result *keep.Collection, target, source string, sources map[string]*keep.Collection) error {
	target = strings.TrimPrefix(target, "/")
	if source == "" {
		return result.RemoveAll(target)
	}
	name, from, _ := strings.Cut(source, "/")
	if parent := path.Dir(target); target != "" && parent != "." {
		if err := result.MkdirAll(parent); err != nil {
			return err
		}
	}
	return result.Splice(target, sources[name], from)
}
