package supervisor

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
)

// warning is one thing that users should know about a running container.
type warning struct {
	source string // a later warning of the same source replaces an earlier one
	text   string
	detail string
	// more are keys of runtime_status beside those of a warning.
	more map[string]string
}

// status is what this run has to say in the record's runtime_status, which the
// server replaces whole: what others have written there, a program in the
// container say, is read first and kept.
type status struct {
	turn sync.Mutex // one update at a time

	warnings []warning
	// sent is the last warning and detail that were sent; others' are those
	// that differ.
	sent, sentDetail string
	// foreign are those of others.
	foreign, foreignDetail string
}

// warn publishes a warning together with all there is.
func (r *run) warn(ctx context.Context, w warning) error {
	s := &r.status
	s.turn.Lock()
	defer s.turn.Unlock()
	s.warnings = slices.DeleteFunc(s.warnings, func(old warning) bool { return old.source == w.source })
	s.warnings = append(s.warnings, w)
	now := r.record.RuntimeStatus
	if c, err := r.Records.GetContainer(ctx, r.UUID); err == nil {
		now = c.RuntimeStatus
	}
	text, detail := s.compose(now)
	merged := maps.Clone(now)
	if merged == nil {
		merged = make(map[string]any)
	}
	merged["warning"], merged["warningDetail"] = r.Log.Redact(text), r.Log.Redact(detail)
	for _, w := range s.warnings {
		for k, v := range w.more {
			merged[k] = r.Log.Redact(v)
		}
	}
	err := r.Records.UpdateContainer(ctx, r.UUID, map[string]any{"runtime_status": merged})
	if err == nil {
		s.sent, s.sentDetail = merged["warning"].(string), merged["warningDetail"].(string)
	}
	return err
}

// compose puts all warnings together, those of others first.
func (s *status) compose(now map[string]any) (text, detail string) {
	theirs, _ := now["warning"].(string)
	theirDetail, _ := now["warningDetail"].(string)
	if theirs != s.sent || theirDetail != s.sentDetail {
		s.foreign, s.foreignDetail = theirs, theirDetail
	}
	var texts, details []string
	add := func(text, detail string) {
		if text != "" {
			texts = append(texts, text)
		}
		if detail != "" {
			details = append(details, detail)
		}
	}
	add(s.foreign, s.foreignDetail)
	for _, w := range s.warnings {
		add(w.text, w.detail)
	}
	return strings.Join(texts, "; "), strings.Join(details, "\n")
}

// warnLater is warn beside the run, for those who must not wait.
func (r *run) warnLater(w warning) {
	r.background.run(func(ctx context.Context) {
		if err := r.warn(ctx, w); err != nil {
			r.Log.Printf("error updating container runtime_status: %v", err)
		}
	})
}
