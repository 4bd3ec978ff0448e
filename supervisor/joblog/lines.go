package joblog

import "bytes"

// maxLine is the longest line that is ever held in memory while its end has
// not been seen.
const maxLine = 64 << 10

// lines cuts what is written to it into lines.
type lines struct {
	partial []byte
	inLine  bool // the current line has been delivered in part
}

// write calls f for every complete line, with its newline; the rest is kept
// until the line is complete. A line longer than maxLine is delivered in
// pieces, the first of which has first set. f must not keep what it gets.
func (l *lines) write(p []byte, f func(piece []byte, first bool)) {
	for len(p) > 0 {
		piece, end := p, false
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			piece, end = p[:i+1], true
		}
		if room := maxLine - len(l.partial); len(piece) > room {
			piece, end = piece[:room], false
		}
		p = p[len(piece):]
		if len(l.partial) > 0 || !end {
			l.partial = append(l.partial, piece...)
			if !end && len(l.partial) < maxLine {
				return // p is used up
			}
			piece = l.partial
		}
		f(piece, !l.inLine)
		l.inLine = !end
		l.partial = l.partial[:0]
	}
}

// rest delivers an unterminated last line.
func (l *lines) rest(f func(piece []byte, first bool)) {
	if len(l.partial) > 0 {
		f(l.partial, !l.inLine)
	}
	l.partial, l.inLine = nil, false
}
