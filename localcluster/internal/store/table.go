// Package store keeps the records of the embedded cluster in one SQLite file:
// tables of attributes, transactions with one writer and several readers, and
// the migrations that bring an older file up to date.
//
// A committed transaction survives kill -9 at any moment, and (unless opened
// with NoSync) a power failure: WAL with a sync at every commit
// (https://sqlite.org/pragma.html#pragma_synchronous).
package store

import (
	"encoding/json"
	"time"
)

// Type is the type of an attribute's values, in the Go type they have in a
// Record and in the SQLite type they are stored as.
type Type int

const (
	Text  Type = iota // string, TEXT
	Int               // int64, INTEGER
	Float             // float64, REAL
	Bool              // bool, INTEGER 0 or 1
	Time              // time.Time in UTC, TEXT as in TimeLayout
	Hash              // json.RawMessage, TEXT: a JSON object, keys sorted
	Array             // json.RawMessage, TEXT: a JSON array
)

// TimeLayout is the stored form of a time: UTC, microseconds, fixed width, so
// that comparing texts compares times.
const TimeLayout = "2006-01-02T15:04:05.000000Z"

// Attr is one attribute of a record: one column of the same name.
type Attr struct {
	Name string
	Type Type
	// Secret attributes are never listed, selected or filtered by.
	Secret bool
}

// Table is one kind of record. Every table has the attributes uuid (the key),
// created_at and modified_at.
type Table struct {
	Name   string
	Attrs  []Attr
	byName map[string]*Attr
}

// NewTable names a table and its attributes, in column order.
func NewTable(name string, attrs ...Attr) *Table {
	t := &Table{Name: name, Attrs: attrs, byName: make(map[string]*Attr, len(attrs))}
	for i := range t.Attrs {
		t.byName[t.Attrs[i].Name] = &t.Attrs[i]
	}
	return t
}

// Attr returns the attribute of that name, or nil.
func (t *Table) Attr(name string) *Attr { return t.byName[name] }

// Record is one row: attribute names to values of the types listed at Type,
// nil for null. A record may hold only some of its table's attributes.
type Record map[string]any

// Str returns a text attribute, "" when null or absent.
func (r Record) Str(name string) string { s, _ := r[name].(string); return s }

// Int returns an integer attribute, 0 when null or absent.
func (r Record) Int(name string) int64 { n, _ := r[name].(int64); return n }

// Float returns a float attribute, 0 when null or absent.
func (r Record) Float(name string) float64 { f, _ := r[name].(float64); return f }

// Bool returns a boolean attribute, false when null or absent.
func (r Record) Bool(name string) bool { b, _ := r[name].(bool); return b }

// Time returns a time attribute; ok is false when it is null or absent.
func (r Record) Time(name string) (t time.Time, ok bool) { t, ok = r[name].(time.Time); return }

// JSON returns a hash or array attribute, nil when null or absent.
func (r Record) JSON(name string) json.RawMessage { j, _ := r[name].(json.RawMessage); return j }

// Clone returns a copy that can be changed without changing r. Values are
// shared; they are never changed in place.
func (r Record) Clone() Record {
	c := make(Record, len(r))
	for k, v := range r {
		c[k] = v
	}
	return c
}
