package wire

import (
	"fmt"
	"slices"
	"strings"
)

// withoutEffect are the site settings that this version accepts and does not
// obey yet.
var withoutEffect = []string{"gpu"}

// keepstoreNote says why no local keepstore is started.
func (j Job) keepstoreNote() string {
	switch {
	case j.Message == nil && j.ClusterFile.Config == nil:
		return "not starting a local keepstore process because KeepBuffers=0 in config"
	case j.Message != nil && j.Message.KeepBuffers < 1:
		return fmt.Sprintf("not starting a local keepstore process because KeepBuffers=%d in config", j.Message.KeepBuffers)
	}
	return "not starting a local keepstore process because this version has none"
}

// notes are the first lines of the log: which helpers are not started, and what
// was asked for that this version does not do. Nothing is dropped silently.
func (j Job) notes() (lines []string) {
	lines = append(append(lines, j.ClusterFile.Notes...), j.keepstoreNote())
	if j.Message != nil && j.Message.EC2SpotCheck {
		lines = append(lines, "Not checking for spot instance interruptions (this version cannot)")
	}
	for _, s := range j.Site.Describe() {
		if s.Origin != "default" && slices.Contains(withoutEffect, s.Name) {
			lines = append(lines, fmt.Sprintf("%s (%s) has no effect in this version", s.Name, strings.TrimPrefix(s.Origin, "flag ")))
		}
	}
	return lines
}
