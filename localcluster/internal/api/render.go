package api

import (
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"crunch-oci/localcluster/internal/store"
)

// timeLayout has nine decimals, of which the store keeps six.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// selection reads the select parameter: the attributes to show, nil for all.
func (c *call) selection() ([]string, error) {
	names, err := c.names("select")
	if err != nil {
		return nil, err
	}
	out := names[:0]
	for _, n := range names {
		if n == "kind" || n == "etag" || slices.Contains(out, n) {
			continue
		}
		if _, ok := c.res.computed[n]; !ok {
			if a := c.res.table.Attr(n); a == nil || a.Secret {
				if len(names) == 1 {
					return nil, raised("ArgumentError", "Attribute selection list cannot be empty")
				}
				return nil, raised("ArgumentError", "Invalid attribute '%s' in select", n)
			}
		}
		out = append(out, n)
	}
	if len(out) == 0 && len(names) > 0 {
		out = append(out, "uuid")
	}
	return out, nil
}

// columns are the stored attributes needed to show the selected ones.
func (c *call) columns(sel []string) []string {
	var out []string
	add := func(n string) {
		if c.res.table.Attr(n) != nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	for _, n := range sel {
		if comp, ok := c.res.computed[n]; ok {
			for _, n := range comp.needs {
				add(n)
			}
		} else {
			add(n)
		}
	}
	return out
}

// render makes the JSON object of a record: the selected attributes, or all
// for nil. Attributes that the record does not hold are null.
func (c *call) render(r store.Record, sel []string) (map[string]any, error) {
	out := map[string]any{}
	all := sel == nil
	if all {
		sel = c.res.table.Columns(false)
		for n := range c.res.computed {
			if !slices.Contains(sel, n) {
				sel = append(sel, n)
			}
		}
	}
	for _, n := range sel {
		if comp, ok := c.res.computed[n]; ok {
			v, err := comp.make(c, r)
			if err != nil {
				return nil, err
			}
			out[n] = v
		} else {
			out[n] = c.res.show(n, r[n])
		}
	}
	if all {
		out["kind"], out["etag"] = c.res.kind, etag(r)
	} else if c.res.front {
		out["kind"], out["etag"] = c.res.kind, ""
	}
	return out, nil
}

// show is one stored value as JSON has it.
func (res *resource) show(name string, v any) any {
	switch v := v.(type) {
	case nil:
		if slices.Contains(res.blank, name) {
			return ""
		}
		return nil
	case time.Time:
		return v.Format(timeLayout)
	case float64:
		return number(v, res.front)
	default:
		return v
	}
}

// number writes a float with the 16 digits that the real server gives, and,
// as the back end does, never without a decimal point.
func number(f float64, front bool) json.RawMessage {
	f, _ = strconv.ParseFloat(strconv.FormatFloat(f, 'g', 16, 64), 64) // cannot fail on what it just wrote
	form := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		form = 'e'
	}
	s := strconv.FormatFloat(f, form, -1, 64)
	if !front && !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return json.RawMessage(s)
}

// etag is an opaque word that changes with the record: every change moves
// modified_at.
func etag(r store.Record) string {
	sum := sha1.Sum(fmt.Append(nil, r["uuid"], " ", r["modified_at"]))
	s := new(big.Int).SetBytes(sum[:16]).Text(36)
	if len(s) > 25 {
		s = s[:25]
	}
	return s
}

// humanize makes the attribute's name in error texts: "exit_code" is "Exit
// code".
func humanize(name string) string {
	s := strings.ReplaceAll(name, "_", " ")
	return strings.ToUpper(s[:1]) + s[1:]
}

// inspect writes a value as the real server's language does in error texts.
func inspect(v any) string {
	switch v := v.(type) {
	case nil:
		return "nil"
	case string:
		return strconv.Quote(v)
	case float64:
		return string(number(v, false))
	case time.Time:
		return v.Format("2006-01-02 15:04:05.999999999 UTC")
	case json.RawMessage:
		var d any
		if json.Unmarshal(v, &d) != nil {
			return string(v)
		}
		return inspectJSON(d)
	default:
		return fmt.Sprint(v)
	}
}

func inspectJSON(v any) string {
	switch v := v.(type) {
	case nil:
		return "nil"
	case string:
		return strconv.Quote(v)
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = inspectJSON(e)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		var parts []string
		for _, k := range sortedKeys(v) {
			parts = append(parts, strconv.Quote(k)+" => "+inspectJSON(v[k]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	default:
		return fmt.Sprint(v)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
