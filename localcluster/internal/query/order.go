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
	var items []string
	text := strings.TrimSpace(string(raw))
	switch {
	case text == "" || text == "null":
	case text[0] == '[':
		if err := json.Unmarshal(raw, &items); err != nil {
			return "", fmt.Errorf("invalid order: %s", abbreviate(raw))
		}
	case text[0] == '"':
		items = []string{""}
		if err := json.Unmarshal(raw, &items[0]); err != nil {
			return "", fmt.Errorf("invalid order: %s", abbreviate(raw))
		}
	default:
		items = []string{text}
	}
	var out []string
	seen := map[string]bool{}
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
					return "", fmt.Errorf("invalid order direction '%s'", f[1])
				}
			}
			seen[name] = true
			out = append(out, `"`+name+`"`+dir)
		}
	}
	if !seen["uuid"] {
		out = append(out, defaultOrder)
	}
	return strings.Join(out, ", "), nil
}
