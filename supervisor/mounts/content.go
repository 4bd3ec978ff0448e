package mounts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// addText plans a json or text mount (section 4).
func (p *planner) addText(t target, rel string, inOutput bool) error {
	content, err := t.text()
	if err != nil {
		return err
	}
	file := File{Path: filepath.Join(p.newName(t.Kind), "mountdata."+t.Kind), Content: content}
	p.plan.Files = append(p.plan.Files, file)
	if inOutput && !(t.secret && p.outputWillBeCollection()) {
		p.plan.Staged = append(p.plan.Staged, Staged{Path: rel, IsFile: true, Content: content, source: file.Path})
		return nil
	}
	// A secret is bound over an output that is a collection, so that it
	// never reaches Keep.
	p.bind(Bind{Source: file.Path, Target: t.path, ReadOnly: true, Kind: BindFile, Secret: t.secret})
	return nil
}

// outputWillBeCollection looks at the record, because targets below the output
// path are not always planned after it: "/out!" sorts before "/out/".
func (p *planner) outputWillBeCollection() bool {
	for given, m := range p.Mounts {
		if cleanTarget(given) == p.plan.OutputPath {
			return m.Kind == "collection"
		}
	}
	return false
}

// text renders the content of a json or text mount.
func (t target) text() ([]byte, error) {
	if t.Kind == "json" {
		text, err := renderJSON(t.Content)
		if err != nil {
			// Not the decoder's text, which may quote a secret.
			return nil, fmt.Errorf("content for mount %q is not JSON", t.given)
		}
		return text, nil
	}
	var s *string
	if err := json.Unmarshal(t.Content, &s); err != nil || s == nil {
		return nil, fmt.Errorf("content for mount %q must be a string", t.given)
	}
	return []byte(*s), nil
}

// renderJSON writes a JSON value as json mounts show it: compact, object keys
// sorted, characters special to HTML escaped, numbers digit by digit as in the
// record, no final newline. An absent value is null.
func renderJSON(content json.RawMessage) ([]byte, error) {
	if len(bytes.TrimSpace(content)) == 0 {
		return []byte("null"), nil
	}
	d := json.NewDecoder(bytes.NewReader(content))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than one value")
	}
	// Marshal sorts keys and escapes <, >, &, U+2028 and U+2029 itself.
	return json.Marshal(value)
}
