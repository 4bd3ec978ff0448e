package joblog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// KeepstoreLogs is the cluster setting Containers.LocalKeepLogsToContainerLog:
// what of a local keepstore's output becomes part of the log collection.
type KeepstoreLogs string

const (
	KeepstoreNone   KeepstoreLogs = "none"   // no file, output discarded
	KeepstoreAll    KeepstoreLogs = "all"    // everything
	KeepstoreErrors KeepstoreLogs = "errors" // without successful requests
)

// ErrKeepstoreLogs is returned for any other value of the setting.
var ErrKeepstoreLogs = errors.New("unknown value of Containers.LocalKeepLogsToContainerLog")

// ParseKeepstoreLogs checks a value of the setting; the empty string is the
// default, none.
func ParseKeepstoreLogs(s string) (KeepstoreLogs, error) {
	switch k := KeepstoreLogs(s); k {
	case "":
		return KeepstoreNone, nil
	case KeepstoreNone, KeepstoreAll, KeepstoreErrors:
		return k, nil
	}
	return "", fmt.Errorf("%w: %q (use none, all or errors)", ErrKeepstoreLogs, s)
}

// A KeepstoreFilter passes a keepstore's log on to W, without its empty lines,
// the announcements of requests, and the responses of successful ones.
type KeepstoreFilter struct {
	W io.Writer

	lines lines
	keep  bool // the overlong line being passed on
	err   error
}

// Write passes on those of the lines completed by p that are to be kept.
func (f *KeepstoreFilter) Write(p []byte) (int, error) {
	f.lines.write(p, f.line)
	if f.err != nil {
		return 0, f.err
	}
	return len(p), nil
}

// Close passes on an unterminated last line: it is often the reason why the
// process ended.
func (f *KeepstoreFilter) Close() error {
	f.lines.rest(f.line)
	return f.err
}

func (f *KeepstoreFilter) line(piece []byte, first bool) {
	if first {
		f.keep = keepstoreLineMatters(bytes.TrimSuffix(piece, []byte("\n")))
	}
	if f.keep && f.err == nil {
		_, f.err = f.W.Write(piece)
	}
}

func keepstoreLineMatters(line []byte) bool {
	if len(line) == 0 {
		return false
	}
	if line[0] != '{' {
		return true
	}
	// A map, because field names are case-sensitive here.
	var entry map[string]any
	if json.Unmarshal(line, &entry) != nil {
		return true
	}
	switch entry["msg"] {
	case "request":
		return false
	case "response":
		status, ok := entry["respStatusCode"].(float64)
		return !ok || status < 200 || status > 299
	}
	return true
}
