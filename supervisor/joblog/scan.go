package joblog

import "bytes"

// mountErrors are looked for in this order; the workflow runner's users know
// them by these texts.
var mountErrors = []string{
	"Keep write error",
	"Block not found error",
	"Unhandled exception during FUSE operation",
}

// A MountScanner looks for errors in what the FUSE mount process writes to
// stderr. Only the first of the whole run is reported.
type MountScanner struct {
	// Report is called once, from within Write, and must not take long: the
	// process that writes is waiting. pattern is the text found, line the whole
	// line as written (its first 64 KiB if it is longer).
	Report func(pattern, line string)

	lines    lines
	reported bool
}

// Write looks at the lines completed by p. If they hold several patterns, the
// one first in the list wins. It never fails.
func (s *MountScanner) Write(p []byte) (int, error) {
	if s.reported {
		return len(p), nil
	}
	best, detail := len(mountErrors), ""
	s.lines.write(p, func(piece []byte, first bool) {
		if !first {
			return // the tail of an overlong line
		}
		for i, pattern := range mountErrors[:best] {
			if bytes.Contains(piece, []byte(pattern)) {
				best, detail = i, string(bytes.TrimSuffix(piece, []byte("\n")))
				break
			}
		}
	})
	if best < len(mountErrors) {
		s.reported = true
		s.lines = lines{}
		if s.Report != nil {
			s.Report(mountErrors[best], detail)
		}
	}
	return len(p), nil
}
