package libct

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
)

// OnWarning passes libcontainer's warnings and errors to sink, a line each, from
// any goroutine, until stop is called. libcontainer has one logger for the whole
// process: a sink also gets what concerns other containers.
func OnWarning(sink func(text string)) (stop func()) {
	redirectLog()
	return listeners.add(sink)
}

// redirectLog takes libcontainer's messages away from the global logger that
// prints them to stderr. As long as nobody listens they go to log/slog.
var redirectLog = sync.OnceFunc(func() {
	logrus.SetOutput(io.Discard)
	logrus.AddHook(&listeners)
})

var listeners hook

type hook struct {
	mu    sync.Mutex
	last  int
	sinks map[int]func(string)
}

func (h *hook) add(sink func(string)) (remove func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sinks == nil {
		h.sinks = make(map[int]func(string))
	}
	h.last++
	key := h.last
	h.sinks[key] = sink
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.sinks, key)
	}
}

// Levels implements logrus.Hook.
func (*hook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// Fire implements logrus.Hook.
func (h *hook) Fire(e *logrus.Entry) error {
	var b strings.Builder
	b.WriteString("libcontainer: " + strings.TrimRight(e.Message, "\n"))
	for _, k := range slices.Sorted(maps.Keys(e.Data)) {
		fmt.Fprintf(&b, ", %s: %v", k, e.Data[k])
	}
	h.mu.Lock()
	sinks := slices.Collect(maps.Values(h.sinks))
	h.mu.Unlock()
	for _, sink := range sinks {
		sink(b.String())
	}
	if len(sinks) == 0 {
		slog.Warn(b.String())
	}
	return nil
}
