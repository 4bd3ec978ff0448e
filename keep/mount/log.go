package mount

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// The lines that the supervisor looks for on stderr (spec logs-and-stats.md
// section 8). Users know them, and dispatchers' wikis explain them.
const (
	writeFailed   = "Keep write error"
	blockNotFound = "Block not found error"
	unhandled     = "Unhandled exception during FUSE operation"
)

// logger writes lines in the form of the reference,
// "YYYY-MM-DD HH:MM:SS NAME[PID] LEVEL: TEXT", local time. Each is one write,
// so that lines of several goroutines do not mix.
type logger struct {
	mu    sync.Mutex
	w     io.Writer
	debug bool
}

func (l *logger) line(level, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	// One line per event: the supervisor shows the user the line it found.
	text = strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", " | ")
	l.write(fmt.Sprintf("%s arvados.arvados_fuse[%d] %s: %s\n",
		time.Now().Format("2006-01-02 15:04:05"), os.Getpid(), level, text))
}

func (l *logger) write(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = io.WriteString(l.w, s) // there is no other place to complain to
}

func (l *logger) errorf(format string, args ...any)   { l.line("ERROR", format, args...) }
func (l *logger) warningf(format string, args ...any) { l.line("WARNING", format, args...) }
func (l *logger) debugf(format string, args ...any) {
	if l.debug {
		l.line("DEBUG", format, args...)
	}
}

// Write takes messages of the FUSE library.
func (l *logger) Write(p []byte) (int, error) {
	l.warningf("%s", p)
	return len(p), nil
}
