package keepstore

import (
	"io"
	"log/slog"
)

// dir is a mount's Directory volume.
func dir(m *mount) *directory { return m.volume.(*directory) }

func jsonLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewJSONHandler(w, nil)) }
