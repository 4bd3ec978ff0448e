package libct

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"github.com/sirupsen/logrus"
)

// redirectLog sends libcontainer's warnings, which go to a global logger that
// prints to stderr, to log/slog.
var redirectLog = sync.OnceFunc(func() {
	logrus.SetOutput(io.Discard)
	logrus.AddHook(hook{})
})

type hook struct{}

func (hook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

func (hook) Fire(e *logrus.Entry) error {
	level := slog.LevelWarn
	if e.Level < logrus.WarnLevel {
		level = slog.LevelError
	}
	attrs := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	slog.Log(context.Background(), level, "libcontainer: "+e.Message, attrs...)
	return nil
}
