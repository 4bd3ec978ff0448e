package nodecheck

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Report is all that was found.
type Report struct {
	Version string `json:"version"`
	Host    string `json:"host"`
	// Healthy is false if a finding is a Failure.
	Healthy bool `json:"healthy"`
	// Hung tells that a check has not ended, and may never.
	Hung         bool      `json:"-"`
	Findings     []Finding `json:"checks"`
	Settings     []Setting `json:"settings"`
	Milliseconds int64     `json:"milliseconds"`
}

// Setting is one in force.
type Setting struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	Origin  string `json:"origin"`
	Meaning string `json:"meaning"`
}

func (r *Report) has(l Level) bool { return r.count(l) > 0 }

func (r *Report) count(l Level) (n int) {
	for _, f := range r.Findings {
		if f.Level == l {
			n++
		}
	}
	return n
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// colours of levels (ECMA-48, select graphic rendition).
var colours = map[Level]string{OK: "32", Note: "2", Warning: "33", Failure: "1;31"}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer, colour bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "crunch-run %s on %s\n\n", r.Version, r.Host)
	width := 0
	for _, f := range r.Findings {
		width = max(width, len(f.Area))
	}
	const levels = len(string(Warning))
	area := ""
	for _, f := range r.Findings {
		shown := f.Area
		if f.Area == area {
			shown = ""
		}
		area = f.Area
		level := fmt.Sprintf("%-*s", levels, f.Level)
		if colour {
			level = "\x1b[" + colours[f.Level] + "m" + level + "\x1b[0m"
		}
		indent := "\n" + strings.Repeat(" ", width+levels+4)
		fmt.Fprintf(&b, "%-*s  %s  %s\n", width, shown, level, strings.ReplaceAll(clean(f.Text), "\n", indent))
		if f.Advice != "" {
			fmt.Fprintf(&b, "%s-> %s\n", indent[1:], strings.ReplaceAll(clean(f.Advice), "\n", indent+"   "))
		}
	}
	if len(r.Settings) > 0 {
		name, value := 0, 0
		for _, s := range r.Settings {
			name, value = max(name, len(s.Name)), max(value, len(s.Value))
		}
		b.WriteString("\nSettings in force:\n")
		for _, s := range r.Settings {
			fmt.Fprintf(&b, "  %-*s  %-*s  %s\n", name, s.Name, value, clean(s.Value), clean(s.Origin))
		}
	}
	fmt.Fprintf(&b, "\n%s\n", r.summary())
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) summary() string {
	n, warnings := r.count(Failure), r.count(Warning)
	text := "This node can run containers"
	if n > 0 {
		text = fmt.Sprintf("This node is not fit to run containers: %s", plural(n, "failure"))
	}
	if warnings > 0 {
		text += ", " + plural(warnings, "warning")
	}
	return fmt.Sprintf("%s (%d ms).", text, r.Milliseconds)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// clean keeps what a file name or a kernel message may contain from the
// terminal.
func clean(text string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' && c != '\n' || c == 0x7f || c >= 0x80 && c < 0xa0 {
			return '?'
		}
		return c
	}, text)
}
