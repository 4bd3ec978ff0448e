// Package query is the list language of the API: filters, order and select,
// checked against a table and turned into SQL (arvados-api.md section 3).
package query

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"crunch-oci/localcluster/internal/store"
)

// ErrSyntax is wrapped by errors about text that is not JSON, as against JSON
// that is no valid filter.
var ErrSyntax = errors.New("not JSON")

// maxFilters bounds the conditions of one request: SQLite's expression depth
// is limited, and no client sends so many.
const maxFilters = 500

// maxOperands bounds the values in all filters together; SQLite takes 32766
// parameters.
const maxOperands = 30000

// kindInfix maps the operand of is_a to the infix of UUIDs.
var kindInfix = map[string]string{
	"arvados#collection": "4zz18", "arvados#container": "dz642", "arvados#containerRequest": "xvhdp",
	"arvados#apiClientAuthorization": "gj3su", "arvados#user": "tpzed", "arvados#group": "j7d0g",
	"arvados#link": "o0j2j", "arvados#log": "57u5n", "arvados#keepService": "bi6l4",
	"arvados#workflow": "7fd4e", "arvados#virtualMachine": "2x53u",
}

// Filters parses a filters parameter: a JSON array of [attribute, operator,
// operand] triples, all of which must hold.
func Filters(t *store.Table, raw []byte) ([]store.Cond, error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, nil
	}
	if !json.Valid(raw) {
		var v any
		return nil, fmt.Errorf("%w: %w", ErrSyntax, json.Unmarshal(raw, &v))
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("filters must be an array of [attribute, operator, operand]")
	}
	if len(list) > maxFilters {
		return nil, fmt.Errorf("too many filters: %d, at most %d", len(list), maxFilters)
	}
	conds := make([]store.Cond, 0, len(list))
	operands := 0
	for _, raw := range list {
		var f []json.RawMessage
		if err := json.Unmarshal(raw, &f); err != nil || len(f) != 3 {
			return nil, fmt.Errorf("invalid filter %s: not [attribute, operator, operand]", abbreviate(raw))
		}
		var attr, op string
		if json.Unmarshal(f[0], &attr) != nil || json.Unmarshal(f[1], &op) != nil {
			return nil, fmt.Errorf("invalid filter %s: attribute and operator must be strings", abbreviate(raw))
		}
		c, err := filter(t, attr, strings.ToLower(op), f[2])
		if err != nil {
			return nil, err
		}
		if operands += len(c.Args); operands > maxOperands {
			return nil, fmt.Errorf("too many operands in filters: at most %d", maxOperands)
		}
		conds = append(conds, c)
	}
	return conds, nil
}

// Where parses a where parameter, the older form of filters: a JSON object of
// attributes and the values they must have, or arrays of them.
func Where(t *store.Table, raw []byte) ([]store.Cond, error) {
	var wanted map[string]json.RawMessage
	if err := json.Unmarshal(raw, &wanted); err != nil {
		return nil, fmt.Errorf("where must be an object of attributes and values")
	}
	list := make([][3]any, 0, len(wanted))
	for _, attr := range slices.Sorted(maps.Keys(wanted)) {
		op := "="
		if v := bytes.TrimSpace(wanted[attr]); len(v) > 0 && v[0] == '[' {
			op = "in"
		}
		list = append(list, [3]any{attr, op, wanted[attr]})
	}
	filters, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	return Filters(t, filters)
}

func abbreviate(b []byte) string {
	if len(b) > 100 {
		return string(b[:100]) + "..."
	}
	return string(b)
}

// column is what a condition is about: an SQL expression and the type of its
// values.
type column struct {
	sql  string
	args []any
	typ  store.Type
	prop bool // a member of a JSON object: the type is what the operand's is
}

func filter(t *store.Table, attr, op string, operand json.RawMessage) (store.Cond, error) {
	fail := func(format string, a ...any) (store.Cond, error) { return store.Cond{}, fmt.Errorf(format, a...) }
	name, key, isProp := strings.Cut(attr, ".")
	if isProp && name == t.Name { // "containers.priority"
		name, key, isProp = strings.Cut(key, ".")
	}
	a := t.Attr(name)
	if a == nil || a.Secret || isProp && a.Type != store.Hash {
		return fail("invalid attribute '%s' in filter", attr)
	}
	if isProp {
		key = strings.TrimSuffix(strings.TrimPrefix(key, "<"), ">")
	}
	col := column{sql: `"` + name + `"`, typ: a.Type}
	if isProp {
		col = column{sql: `prop("` + name + `", ?)`, args: []any{key}, prop: true}
	}
	nested := a.Type == store.Hash || a.Type == store.Array
	switch op {
	case "=", "!=":
		if nested && !isProp {
			return fail("invalid operator '%s' for attribute '%s' in filter", op, attr)
		}
		return col.equal(attr, op, operand)
	case "<", "<=", ">", ">=":
		if nested && !isProp || a.Type == store.Bool {
			return fail("invalid operator '%s' for attribute '%s' in filter", op, attr)
		}
		v, err := col.value(attr, operand, true)
		if err != nil {
			return store.Cond{}, err
		}
		if v == nil {
			return fail("invalid operand type 'NilClass' for '%s' operator in filters", op)
		}
		return store.Cond{SQL: col.number(v) + " " + op + " ?", Args: append(col.args, v)}, nil
	case "like", "ilike":
		var s string
		if json.Unmarshal(operand, &s) != nil {
			return fail("invalid operand type for '%s' operator in filters", op)
		}
		if nested && !isProp || !isProp && a.Type != store.Text {
			return fail("invalid attribute type for '%s' operator in filters: '%s'", op, attr)
		}
		return store.Cond{SQL: "sql_" + op + "(" + col.sql + ", ?)", Args: append(col.args, s)}, nil
	case "in", "not in":
		return col.in(attr, op, operand, nested && !isProp)
	case "is_a":
		return isA(name, operand)
	case "exists":
		return exists(col, a, attr, isProp, operand)
	case "contains":
		return contains(a, name, key, attr, isProp, operand)
	}
	return fail("invalid operator '%s'", op)
}

// equal renders = and !=. != and text also matches null, as the API has it.
func (c column) equal(attr, op string, operand json.RawMessage) (store.Cond, error) {
	v, err := c.value(attr, operand, true)
	if err != nil {
		return store.Cond{}, err
	}
	switch {
	case v == nil && op == "=":
		return store.Cond{SQL: c.sql + " IS NULL", Args: c.args}, nil
	case v == nil:
		return store.Cond{SQL: c.sql + " IS NOT NULL", Args: c.args}, nil
	case op == "=":
		return store.Cond{SQL: c.number(v) + " = ?", Args: append(c.args, v)}, nil
	case c.typ == store.Text || c.prop:
		return store.Cond{SQL: c.number(v) + " IS NOT ?", Args: append(c.args, v)}, nil
	default:
		return store.Cond{SQL: c.sql + " <> ?", Args: append(c.args, v)}, nil
	}
}

// number is the expression to compare with v: a property compared with a
// number is compared as one.
func (c column) number(v any) string {
	if _, text := v.(string); c.prop && !text {
		return "CAST(" + c.sql + " AS REAL)"
	}
	return c.sql
}

func (c column) in(attr, op string, operand json.RawMessage, nested bool) (store.Cond, error) {
	var list []json.RawMessage
	if json.Unmarshal(operand, &list) != nil || string(bytes.TrimSpace(operand)) == "null" {
		return store.Cond{}, fmt.Errorf("invalid operand type for '%s' operator in filters: array required", op)
	}
	if nested {
		return store.Cond{}, fmt.Errorf("invalid operator '%s' for attribute '%s' in filter", op, attr)
	}
	if len(list) > maxOperands {
		return store.Cond{}, fmt.Errorf("too many operands in filter on '%s': %d, at most %d", attr, len(list), maxOperands)
	}
	args := c.args
	marks := make([]string, 0, len(list))
	hasNull := false
	for _, e := range list {
		v, err := c.value(attr, e, false)
		if err != nil {
			return store.Cond{}, err
		}
		if v == nil {
			hasNull = true
			continue
		}
		if c.prop { // members are compared as text
			v = propText(v)
		}
		marks, args = append(marks, "?"), append(args, v)
	}
	sql := c.sql + " IN (" + strings.Join(marks, ", ") + ")"
	if op == "not in" {
		sql = "NOT coalesce(" + sql + ", 0)"
		if hasNull {
			sql = "(" + sql + ") AND " + c.sql + " IS NOT NULL"
			args = append(args, c.args...)
		}
	} else if hasNull {
		sql = "(" + sql + ") OR " + c.sql + " IS NULL"
		args = append(args, c.args...)
	}
	return store.Cond{SQL: sql, Args: args}, nil
}

func propText(v any) any {
	switch v := v.(type) {
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		return strconv.FormatBool(v)
	default:
		return v
	}
}

// value decodes one operand as the column's type. Numeric attributes take
// numeric strings unless strict spelling is asked for by numericString.
func (c column) value(attr string, operand json.RawMessage, numericString bool) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(operand))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	bad := func() (any, error) {
		return nil, fmt.Errorf("invalid operand for attribute '%s' in filter: %s", attr, abbreviate(operand))
	}
	if v == nil {
		return nil, nil
	}
	if c.prop {
		switch v := v.(type) {
		case string:
			return v, nil
		case json.Number:
			f, err := v.Float64()
			if err != nil {
				return bad()
			}
			return f, nil
		case bool:
			return strconv.FormatBool(v), nil
		}
		return bad()
	}
	switch c.typ {
	case store.Text:
		if s, ok := v.(string); ok {
			return s, nil
		}
	case store.Int, store.Float:
		var s string
		switch v := v.(type) {
		case json.Number:
			s = v.String()
		case string:
			if !numericString {
				return bad()
			}
			s = strings.TrimSpace(v)
		}
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n, nil
		}
		if f, err := strconv.ParseFloat(s, 64); err == nil {
			return f, nil
		}
	case store.Bool:
		if b, ok := v.(bool); ok {
			return b, nil
		}
	case store.Time:
		if s, ok := v.(string); ok {
			if t, err := ParseTime(s); err == nil {
				return t, nil
			}
		}
	}
	return bad()
}

func isA(name string, operand json.RawMessage) (store.Cond, error) {
	var kinds []string
	var one string
	if json.Unmarshal(operand, &one) == nil {
		kinds = []string{one}
	} else if json.Unmarshal(operand, &kinds) != nil {
		return store.Cond{}, fmt.Errorf("invalid operand type for 'is_a' operator in filters")
	}
	if name != "uuid" && !strings.HasSuffix(name, "_uuid") {
		return store.Cond{}, fmt.Errorf("invalid attribute '%s' for 'is_a' operator in filters", name)
	}
	c := store.Cond{SQL: "0"}
	for _, k := range kinds {
		if infix, ok := kindInfix[k]; ok {
			c.SQL += ` OR substr("` + name + `", 6, 7) = ?`
			c.Args = append(c.Args, "-"+infix+"-")
		}
	}
	return c, nil
}

// exists takes ["properties", "exists", "key"] and ["properties.key",
// "exists", true or false].
func exists(c column, a *store.Attr, attr string, isProp bool, operand json.RawMessage) (store.Cond, error) {
	if a.Type != store.Hash {
		return store.Cond{}, fmt.Errorf("invalid operator 'exists' for attribute '%s' in filter", attr)
	}
	var want bool
	var key string
	has := `prop_has("` + a.Name + `", ?)`
	switch {
	case isProp && json.Unmarshal(operand, &want) == nil && want:
		return store.Cond{SQL: has, Args: c.args}, nil
	case isProp && json.Unmarshal(operand, &want) == nil:
		return store.Cond{SQL: "NOT " + has, Args: c.args}, nil
	case !isProp && json.Unmarshal(operand, &key) == nil:
		return store.Cond{SQL: has, Args: []any{key}}, nil
	}
	return store.Cond{}, fmt.Errorf("invalid operand for 'exists' operator in filters: %s", abbreviate(operand))
}

// contains takes a value or an array of values that must all be there, in an
// array attribute, in a property, or as keys of an object.
func contains(a *store.Attr, name, key, attr string, isProp bool, operand json.RawMessage) (store.Cond, error) {
	var values []json.RawMessage
	if json.Unmarshal(operand, &values) != nil {
		values = []json.RawMessage{operand}
	}
	c := store.Cond{SQL: "1"}
	for _, v := range values {
		var compact bytes.Buffer
		if err := json.Compact(&compact, v); err != nil {
			return c, err
		}
		switch {
		case isProp:
			c.SQL += ` AND contains(coalesce(prop_json("` + name + `", ?), ''), ?)`
			c.Args = append(c.Args, key, compact.String())
		case a.Type == store.Array:
			c.SQL += ` AND contains("` + name + `", ?)`
			c.Args = append(c.Args, compact.String())
		case a.Type == store.Hash:
			var k string
			if json.Unmarshal(v, &k) != nil {
				return c, fmt.Errorf("invalid operand for 'contains' operator in filters: %s", abbreviate(operand))
			}
			c.SQL += ` AND prop_has("` + name + `", ?)`
			c.Args = append(c.Args, k)
		default:
			return c, fmt.Errorf("invalid operator 'contains' for attribute '%s' in filter", attr)
		}
	}
	return c, nil
}

var timeSpace = regexp.MustCompile(`^(\d{4}-\d\d-\d\d) (\d\d:)`)

// ParseTime reads a time as clients write it: any RFC 3339 form, also with a
// space for the T, in UTC with microseconds.
func ParseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, timeSpace.ReplaceAllString(strings.TrimSpace(s), "${1}T$2"))
	if err != nil {
		return t, fmt.Errorf("%q is not a time (RFC 3339)", s)
	}
	t = t.UTC().Truncate(time.Microsecond)
	if t.Year() < 0 || t.Year() > 9999 {
		return t, fmt.Errorf("%q is out of range", s)
	}
	return t, nil
}
