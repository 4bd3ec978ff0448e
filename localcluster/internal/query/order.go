package query

import (
	"encoding/json"
	"fmt"
	"strings"

	"crunch-oci/localcluster/internal/store"
)

// defaultOrder follows whatever order was asked for, so that paging is stable.
const defaultOrder = `"modified_at" DESC, "uuid" DESC`

// Order parses an order parameter, a string or a JSON array of strings, each
// holding columns with an optional asc or desc, separated by commas. Unknown
// columns are ignored. The result is an SQL ORDER BY list, never empty.
func Order(t *store.Table, raw []byte) (string, error) {
	terms, seen, err := order(t, raw)
	if err != nil {
		return "", err
	}
	if !seen["uuid"] {
		terms = append(terms, defaultOrder)
	}
	return strings.Join(terms, ", "), nil
}

// DistinctOrder is Order for a list of distinct values of some columns: columns
// that are not among them are ignored, and the rest of them follow.
func DistinctOrder(t *store.Table, raw []byte, columns []string) (string, error) {
	attrs := make([]store.Attr, 0, len(columns))
	for _, n := range columns {
		attrs = append(attrs, *t.Attr(n))
	}
	terms, seen, err := order(store.NewTable(t.Name, attrs...), raw)
	if err != nil {
		return "", err
	}
	for _, n := range columns {
		if !seen[n] {
			terms = append(terms, `"`+n+`"`)
		}
	}
	return strings.Join(terms, ", "), nil
}

// order is what was asked for, and which columns it is about.
func order(t *store.Table, raw []byte) (out []string, seen map[string]bool, err error) {
	var items []string
	text := strings.TrimSpace(string(raw))
	switch {
	case text == "" || text == "null":
	case text[0] == '[':
		if err := json.Unmarshal(raw, &items); err != nil {
			return nil, nil, fmt.Errorf("invalid order: %s", abbreviate(raw))
		}
	case text[0] == '"':
		items = []string{""}
		if err := json.Unmarshal(raw, &items[0]); err != nil {
			return nil, nil, fmt.Errorf("invalid order: %s", abbreviate(raw))
		}
	default:
		items = []string{text}
	}
	seen = map[string]bool{}
	for _, item := range items {
		for _, part := range strings.Split(item, ",") {
			f := strings.Fields(part)
			if len(f) == 0 {
				continue
			}
			name := strings.TrimPrefix(f[0], t.Name+".")
			a := t.Attr(name)
			if a == nil || a.Secret || seen[name] {
				continue
			}
			// PostgreSQL sorts nulls as larger than anything, SQLite as smaller.
			dir := " ASC NULLS LAST"
			if len(f) > 1 {
				switch strings.ToLower(f[1]) {
				case "asc":
				case "desc":
					dir = " DESC NULLS FIRST"
				default:
					return nil, nil, fmt.Errorf("invalid order direction '%s'", f[1])
				}
			}
			seen[name] = true
			out = append(out, `"`+name+`"`+dir)
		}
	}
	return out, seen, nil
}
