package joblog

import (
	"bytes"
	"time"
)

// stampLayout has exactly nine fraction digits: consumers cut the stamp off by
// pattern and sort merged lines as text.
const stampLayout = "2006-01-02T15:04:05.000000000Z "

const (
	firstNano = len("2006-01-02T15:04:05.")
	lastNano  = firstNano + 8
)

// stampBuffer bounds what a stamper holds: longer stretches of a line are
// passed on without a copy.
const stampBuffer = 64 << 10

// stamper puts a time stamp before the first byte of every line.
//
// Stamps of one stream strictly increase unless the clock is set back, so that
// sorting lines as text keeps their order. All bytes of one write arrived at
// the same moment; the lines they begin are told apart by one nanosecond each,
// which also saves asking the clock per line.
type stamper struct {
	now     func() time.Time
	at      time.Time // of the line begun last, but for
	ahead   int       // so many nanoseconds, which only text has
	text    [len(stampLayout)]byte
	midLine bool
	buf     []byte
}

// write passes p with stamps inserted to emit, in pieces that emit must not
// keep, and returns how much of p was passed on. An unfinished line is
// continued by the next write.
func (s *stamper) write(p []byte, emit func([]byte) error) (int, error) {
	if s.buf == nil {
		s.buf = make([]byte, 0, stampBuffer)
	}
	buf := s.buf[:0]
	done, taken := 0, 0 // bytes of p in earlier pieces, and in buf as well
	flush := func() error {
		if len(buf) == 0 {
			return nil
		}
		err := emit(buf)
		buf = buf[:0]
		if err == nil {
			done = taken
		}
		return err
	}
	midLine, asked := s.midLine, false
	for taken < len(p) {
		if !midLine {
			if asked {
				s.advance()
			} else {
				s.ask()
				asked = true
			}
			// One byte more than the stamp, so that a stamp is never passed on
			// without anything behind it.
			if len(buf)+len(s.text)+1 > cap(buf) {
				if err := flush(); err != nil {
					return s.stopped(p, done, err)
				}
			}
			buf = append(buf, s.text[:]...)
		}
		line := p[taken:]
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line = line[:i+1]
		}
		midLine = line[len(line)-1] != '\n'
		if len(buf)+len(line) <= cap(buf) {
			buf = append(buf, line...)
			taken += len(line)
			continue
		}
		// Fill up, pass on, and hand over the rest as it is.
		n := cap(buf) - len(buf)
		buf = append(buf, line[:n]...)
		taken += n
		if err := flush(); err != nil {
			return s.stopped(p, done, err)
		}
		if rest := line[n:]; len(rest) >= cap(buf)/2 {
			if err := emit(rest); err != nil {
				return s.stopped(p, done, err)
			}
			taken += len(rest)
			done = taken
		} else {
			buf = append(buf, rest...)
			taken += len(rest)
		}
	}
	if err := flush(); err != nil {
		return s.stopped(p, done, err)
	}
	s.midLine = midLine
	return len(p), nil
}

// stopped leaves the stamper where the bytes passed on so far leave it.
func (s *stamper) stopped(p []byte, done int, err error) (int, error) {
	if done > 0 {
		s.midLine = p[done-1] != '\n'
	}
	return done, err
}

// ask takes the time of a write. A clock that stood still, or was slewed back
// a little, is overruled; one that was set is followed.
func (s *stamper) ask() {
	t := s.now().UTC().Round(0) // wall clock only: it is what readers see
	s.catchUp()
	if d := s.at.Sub(t); d >= 0 && d < time.Second {
		t = s.at.Add(time.Nanosecond)
	}
	s.at = t
	t.AppendFormat(s.text[:0], stampLayout)
}

// advance moves on by a nanosecond, counting in the text itself: time.Time.Add
// for every line would be a fifth of the work of short ones.
func (s *stamper) advance() {
	s.ahead++
	for i := lastNano; i >= firstNano; i-- {
		if s.text[i] != '9' {
			s.text[i]++
			return
		}
		s.text[i] = '0'
	}
	s.catchUp()
	s.at.AppendFormat(s.text[:0], stampLayout)
}

func (s *stamper) catchUp() { s.at, s.ahead = s.at.Add(time.Duration(s.ahead)), 0 }
