package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// fileValue is the text of a setting and the line it stands on.
type fileValue struct{ text, origin string }

// readSiteFile reads a site file: one YAML mapping from setting names to
// scalars or, for commands, lists of scalars. Unknown and repeated names are
// errors: a mistyped limit must not be a limit that is not there.
func readSiteFile(path string, r io.Reader) (map[string]fileValue, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSiteFile+1))
	if err != nil {
		return nil, fmt.Errorf("site file: %w", err)
	}
	if len(data) > maxSiteFile {
		return nil, fmt.Errorf("site file: %s: larger than %d bytes", path, maxSiteFile)
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err == io.EOF {
		return nil, nil // nothing but comments
	} else if err != nil {
		return nil, fmt.Errorf("site file: %s: %w", path, err)
	}
	if dec.Decode(new(yaml.Node)) != io.EOF {
		return nil, fmt.Errorf("site file: %s: more than one YAML document", path)
	}
	at := func(n *yaml.Node, format string, args ...any) error {
		return fmt.Errorf("%s:%d: %s", path, n.Line, fmt.Sprintf(format, args...))
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, at(root, "must be a mapping from setting names to values")
	}
	values := map[string]fileValue{}
	var errs []error
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		name := key.Value
		if key.Kind != yaml.ScalarNode || findSetting(name) == nil {
			errs = append(errs, at(key, "unknown setting %q", name))
			continue
		}
		if earlier, ok := values[name]; ok {
			errs = append(errs, at(key, "%s is already set at %s", name, earlier.origin))
			continue
		}
		text, err := nodeText(value)
		if err != nil {
			errs = append(errs, at(value, "%s: %v", name, err))
			continue
		}
		values[name] = fileValue{text, fmt.Sprintf("%s:%d", path, value.Line)}
	}
	return values, errors.Join(errs...)
}

// nodeText is the text a setting is parsed from.
func nodeText(n *yaml.Node) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "", errors.New("no value (write \"\" if it is to be empty)")
		}
		return n.Value, nil
	case yaml.SequenceNode:
		words := []string{}
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
				return "", errors.New("must be a plain value or a list of plain values")
			}
			words = append(words, item.Value)
		}
		text, err := json.Marshal(words)
		return string(text), err
	}
	return "", errors.New("must be a plain value or a list of plain values")
}
