package dispatch

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
)

// procinfo is the content of a run's lock file, in Arvados' own form: nothing
// may be added.
type procinfo struct {
	UUID string
	PID  int
}

// line is the procinfo as it is written: JSON and a line break.
func (p procinfo) line() []byte {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err) // a string and a number can be written
	}
	return append(text, '\n')
}

// maxProcinfo bounds what is read of a lock file, in bytes.
const maxProcinfo = 64 << 10

// readProcinfo reads the first JSON value of a lock file. The error has no path.
func readProcinfo(r io.Reader) (procinfo, error) {
	var p procinfo
	if err := json.NewDecoder(io.LimitReader(r, maxProcinfo)).Decode(&p); err != nil {
		return procinfo{}, err
	}
	return p, nil
}

// bogus returns an error unless p can be what a supervisor has written. Numbers
// below 1 are no processes but groups of them.
func (p procinfo) bogus() error {
	if ValidUUID(p.UUID) && p.PID > 0 {
		return nil
	}
	return fmt.Errorf("bogus procinfo: {UUID:%s PID:%d}", quoted(p.UUID), p.PID)
}

// quoted keeps what is printed in one line, and plain text plain.
func quoted(s string) string {
	const longest = 40
	if len(s) > longest {
		s = s[:longest] + "..."
	}
	for _, r := range s {
		if r < ' ' || r > '~' {
			return fmt.Sprintf("%q", s)
		}
	}
	return s
}

// record writes p to a lock file. It is on disk when record returns.
func (p procinfo) record(f *os.File) error {
	if _, err := f.WriteAt(p.line(), 0); err != nil {
		return err
	}
	return f.Sync()
}

var containerUUID = regexp.MustCompile(`^[a-z0-9]{5}-dz642-[a-z0-9]{15}$`)

// ValidUUID reports whether s is the UUID of a container. Nothing else may
// become part of a path or a line.
func ValidUUID(s string) bool { return containerUUID.MatchString(s) }
