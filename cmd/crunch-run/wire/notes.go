package wire

import (
	"fmt"
)

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
	return lines
}
