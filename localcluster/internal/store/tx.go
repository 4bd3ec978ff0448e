package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// Tx is a transaction. It ends with the function it was given to.
type Tx struct{ c *conn }

// ErrNotFound is returned by Get when there is no such record.
var ErrNotFound = errors.New("no such record")

// ErrDuplicate is returned (wrapped) when a unique index refuses a record.
var ErrDuplicate = errors.New("duplicate record")

// Cond is a condition on rows: an SQL expression and the values of its ?
// parameters, of the types a Record has.
type Cond struct {
	SQL  string
	Args []any
}

// Query says which records Select returns. The zero value means all.
type Query struct {
	Columns  []string // nil: all that are not secret
	Where    []Cond   // ANDed
	OrderBy  string   // SQL, "" for none
	Limit    int64    // rows; < 0 for no limit
	Offset   int64
	Distinct bool
	MaxText  int64 // stop after rows with so many bytes of text; 0: do not
}

// Get returns all attributes, also secret ones, of the record with that uuid,
// or ErrNotFound.
func (tx *Tx) Get(t *Table, uuid string) (Record, error) {
	rs, err := tx.Select(t, Query{Columns: t.Columns(true), Where: []Cond{{"uuid = ?", []any{uuid}}}, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(rs) == 0 {
		return nil, ErrNotFound
	}
	return rs[0], nil
}

// Columns returns the names of the attributes, with or without secret ones.
func (t *Table) Columns(secret bool) []string {
	names := make([]string, 0, len(t.Attrs))
	for _, a := range t.Attrs {
		if secret || !a.Secret {
			names = append(names, a.Name)
		}
	}
	return names
}

// Select returns the records that q asks for.
func (tx *Tx) Select(t *Table, q Query) ([]Record, error) {
	cols := q.Columns
	if cols == nil {
		cols = t.Columns(false)
	}
	var b strings.Builder
	b.WriteString("SELECT ")
	if q.Distinct {
		b.WriteString("DISTINCT ")
	}
	for i, c := range cols {
		if t.Attr(c) == nil {
			return nil, fmt.Errorf("table %s has no attribute %q", t.Name, c)
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(c))
	}
	b.WriteString(" FROM " + quote(t.Name))
	args := where(&b, q.Where)
	if q.OrderBy != "" {
		b.WriteString(" ORDER BY " + q.OrderBy)
	}
	b.WriteString(" LIMIT ? OFFSET ?")
	args = append(args, q.Limit, q.Offset)
	var out []Record
	var text int64
	err := tx.each(b.String(), args, func(s *sqlite3.Stmt) error {
		if q.MaxText > 0 && text > q.MaxText {
			return errEnough
		}
		r := make(Record, len(cols))
		for i, c := range cols {
			v, err := scan(s, i, t.Attr(c).Type)
			if err != nil {
				return fmt.Errorf("%s.%s: %w", t.Name, c, err)
			}
			if s, ok := v.(string); ok {
				text += int64(len(s))
			}
			r[c] = v
		}
		out = append(out, r)
		return nil
	})
	if err == errEnough {
		err = nil
	}
	return out, err
}

// errEnough ends the reading of rows early.
var errEnough = errors.New("enough")

// Count returns how many rows q selects, without its limit and offset.
func (tx *Tx) Count(t *Table, q Query) (int64, error) {
	var b strings.Builder
	b.WriteString("SELECT count(*) FROM ")
	if q.Distinct {
		b.WriteString("(SELECT DISTINCT ")
		for i, c := range q.Columns {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(quote(c))
		}
		b.WriteString(" FROM ")
	}
	b.WriteString(quote(t.Name))
	args := where(&b, q.Where)
	if q.Distinct {
		b.WriteString(")")
	}
	var n int64
	err := tx.each(b.String(), args, func(s *sqlite3.Stmt) error { n = s.ColumnInt64(0); return nil })
	return n, err
}

func where(b *strings.Builder, conds []Cond) []any {
	var args []any
	for i, c := range conds {
		if i == 0 {
			b.WriteString(" WHERE (")
		} else {
			b.WriteString(" AND (")
		}
		b.WriteString(c.SQL + ")")
		args = append(args, c.Args...)
	}
	return args
}

// Insert adds a record.
func (tx *Tx) Insert(t *Table, r Record) error {
	var cols, marks []string
	var args []any
	for _, a := range t.Attrs {
		if v, ok := r[a.Name]; ok {
			cols, marks, args = append(cols, quote(a.Name)), append(marks, "?"), append(args, v)
		}
	}
	return tx.Exec("INSERT INTO "+quote(t.Name)+" ("+strings.Join(cols, ", ")+") VALUES ("+strings.Join(marks, ", ")+")", args...)
}

// Update sets the given attributes of the record with that uuid.
func (tx *Tx) Update(t *Table, uuid string, changes Record) error {
	var sets []string
	var args []any
	for _, a := range t.Attrs {
		if v, ok := changes[a.Name]; ok {
			sets, args = append(sets, quote(a.Name)+" = ?"), append(args, v)
		}
	}
	if len(sets) == 0 {
		return nil
	}
	return tx.Exec("UPDATE "+quote(t.Name)+" SET "+strings.Join(sets, ", ")+" WHERE uuid = ?", append(args, uuid)...)
}

// Delete removes the record with that uuid, if there is one.
func (tx *Tx) Delete(t *Table, uuid string) error {
	return tx.Exec("DELETE FROM "+quote(t.Name)+" WHERE uuid = ?", uuid)
}

// Exec runs a statement that returns no rows.
func (tx *Tx) Exec(sql string, args ...any) error {
	err := tx.each(sql, args, func(*sqlite3.Stmt) error { return nil })
	if errors.Is(err, sqlite3.CONSTRAINT_UNIQUE) || errors.Is(err, sqlite3.CONSTRAINT_PRIMARYKEY) {
		return fmt.Errorf("%w: %w", ErrDuplicate, err)
	}
	return err
}

// Strings runs a query with one text column and returns it.
func (tx *Tx) Strings(sql string, args ...any) ([]string, error) {
	var out []string
	err := tx.each(sql, args, func(s *sqlite3.Stmt) error { out = append(out, s.ColumnText(0)); return nil })
	return out, err
}

// Int runs a query for one integer; 0 if it returns no row or null.
func (tx *Tx) Int(sql string, args ...any) (int64, error) {
	var n int64
	err := tx.each(sql, args, func(s *sqlite3.Stmt) error { n = s.ColumnInt64(0); return nil })
	return n, err
}

func (tx *Tx) each(sql string, args []any, fn func(*sqlite3.Stmt) error) (err error) {
	s, done, err := tx.c.prepare(sql)
	if err != nil {
		return err
	}
	defer func() {
		s.ClearBindings()            // lets go of long texts
		if e := done(); err == nil { // else it only repeats the error
			err = e
		}
	}()
	for i, a := range args {
		if err := bind(s, i+1, a); err != nil {
			return err
		}
	}
	for s.Step() {
		if err := fn(s); err != nil {
			return err
		}
	}
	return s.Err()
}

func bind(s *sqlite3.Stmt, i int, v any) error {
	switch v := v.(type) {
	case nil:
		return s.BindNull(i)
	case string:
		return s.BindText(i, v)
	case int64:
		return s.BindInt64(i, v)
	case int:
		return s.BindInt64(i, int64(v))
	case float64:
		return s.BindFloat(i, v)
	case bool:
		return s.BindBool(i, v)
	case time.Time:
		if y := v.UTC().Year(); y < 0 || y > 9999 { // it could not be read again
			return fmt.Errorf("cannot store the time %v", v)
		}
		return s.BindText(i, v.UTC().Format(TimeLayout))
	case json.RawMessage:
		if v == nil {
			return s.BindNull(i)
		}
		return s.BindText(i, string(v))
	default:
		return fmt.Errorf("cannot store a value of type %T", v)
	}
}

func scan(s *sqlite3.Stmt, i int, t Type) (any, error) {
	if s.ColumnType(i) == sqlite3.NULL {
		return nil, nil
	}
	switch t {
	case Text:
		return s.ColumnText(i), nil
	case Int:
		return s.ColumnInt64(i), nil
	case Float:
		return s.ColumnFloat(i), nil
	case Bool:
		return s.ColumnBool(i), nil
	case Time:
		return time.Parse(TimeLayout, s.ColumnText(i))
	case Hash, Array:
		return json.RawMessage(s.ColumnText(i)), nil
	default:
		return nil, fmt.Errorf("unknown attribute type %d", t)
	}
}

// quote makes an SQL identifier of a name from a Table; such names hold only
// lower-case letters and underscores.
func quote(name string) string { return `"` + name + `"` }
