package store

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/ncruces/go-sqlite3"
)

// maxKeptObject bounds the text, in bytes, of the object that a connection keeps
// decoded.
const maxKeptObject = 8 << 20

// registerFunctions adds what the list language of the API needs and SQLite
// lacks:
//
//	sql_like(value, pattern)   LIKE as PostgreSQL has it: case counts, \ escapes
//	sql_ilike(value, pattern)  the same without regard to case
//	prop(hash, key)            a member of a JSON object, strings as they are,
//	                           other values as JSON text; null if absent or null
//	prop_has(hash, key)        1 if the object has that key
//	contains(json, value)      1 if json is value, or an array with it; value is
//	                           JSON text
func registerFunctions(c *sqlite3.Conn) error {
	const flags = sqlite3.DETERMINISTIC | sqlite3.INNOCUOUS
	like := func(fold bool) sqlite3.ScalarFunction {
		return func(ctx sqlite3.Context, arg ...sqlite3.Value) {
			if arg[0].Type() == sqlite3.NULL || arg[1].Type() == sqlite3.NULL {
				ctx.ResultNull()
				return
			}
			v, p := arg[0].Text(), arg[1].Text()
			if fold {
				v, p = strings.ToLower(v), strings.ToLower(p)
			}
			ctx.ResultBool(Like(v, p))
		}
	}
	// The object of the last call: the conditions of one list ask the same row
	// again and again, and objects can be large.
	var text []byte
	var object map[string]json.RawMessage
	member := func(arg []sqlite3.Value) (json.RawMessage, bool) {
		if raw := arg[0].RawText(); object == nil || !bytes.Equal(raw, text) {
			text, object = bytes.Clone(raw), nil
			if json.Unmarshal(raw, &object) != nil {
				object = nil
				return nil, false
			}
		}
		v, ok := object[arg[1].Text()]
		if len(text) > maxKeptObject {
			text, object = nil, nil
		}
		return v, ok
	}
	for _, f := range []struct {
		name string
		fn   sqlite3.ScalarFunction
	}{
		{"sql_like", like(false)},
		{"sql_ilike", like(true)},
		{"prop", func(ctx sqlite3.Context, arg ...sqlite3.Value) {
			v, ok := member(arg)
			var s string
			switch {
			case !ok || string(v) == "null":
				ctx.ResultNull()
			case json.Unmarshal(v, &s) == nil:
				ctx.ResultText(s)
			default:
				ctx.ResultText(string(v))
			}
		}},
		{"prop_has", func(ctx sqlite3.Context, arg ...sqlite3.Value) {
			_, ok := member(arg)
			ctx.ResultBool(ok)
		}},
		{"contains", func(ctx sqlite3.Context, arg ...sqlite3.Value) {
			have, want := arg[0].RawText(), arg[1].RawText()
			if bytes.Equal(have, want) {
				ctx.ResultBool(true)
				return
			}
			var list []json.RawMessage
			found := false
			if json.Unmarshal(have, &list) == nil {
				for _, e := range list {
					found = found || bytes.Equal(e, want)
				}
			}
			ctx.ResultBool(found)
		}},
		{"prop_json", func(ctx sqlite3.Context, arg ...sqlite3.Value) {
			if v, ok := member(arg); ok {
				ctx.ResultText(string(v))
			} else {
				ctx.ResultNull()
			}
		}},
	} {
		if err := c.CreateFunction(f.name, 2, flags, f.fn); err != nil {
			return err
		}
	}
	return nil
}

// Like reports whether value matches an SQL LIKE pattern: % stands for any
// text, _ for any one character, \ takes the next character as it is. Time is
// at most the product of the lengths.
func Like(value, pattern string) bool {
	v, p := []rune(value), []rune(pattern)
	vi, pi := 0, 0
	star, mark := -1, 0 // the last %, and where its text ends so far
	for vi < len(v) {
		switch {
		case pi < len(p) && p[pi] == '%':
			star, mark = pi, vi
			pi++
			continue
		case pi < len(p) && p[pi] == '_':
			vi, pi = vi+1, pi+1
			continue
		case pi+1 < len(p) && p[pi] == '\\':
			if p[pi+1] == v[vi] {
				vi, pi = vi+1, pi+2
				continue
			}
		case pi < len(p) && p[pi] == v[vi]:
			vi, pi = vi+1, pi+1
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		vi, pi = mark, star+1
	}
	for pi < len(p) && p[pi] == '%' {
		pi++
	}
	return pi == len(p)
}
