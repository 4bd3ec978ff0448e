package joblog

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
)

var stampPattern = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z `)

func TestTimestampVectors(t *testing.T) {
	for _, v := range vectors[struct {
		Time time.Time
		Text string
	}](t, "timestamps") {
		s := stamper{now: func() time.Time { return v.Time }}
		var got bytes.Buffer
		s.write([]byte("x"), func(p []byte) error { got.Write(p); return nil })
		if got.String() != v.Text+"x" {
			t.Errorf("%v: got %q, want %q", v.Time, got.String(), v.Text+"x")
		}
	}
}

func TestLinePrefixingVectors(t *testing.T) {
	for _, v := range vectors[struct {
		Writes []string
		Result string
	}](t, "line_prefixing") {
		l, tree, _, _ := newTestLog(t, Config{Now: ticking()})
		s, err := l.Stream("stdout.txt", StreamOptions{Stamp: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range v.Writes {
			if n, err := io.WriteString(s, w); n != len(w) || err != nil {
				t.Fatalf("write %q: %d, %v", w, n, err)
			}
		}
		i, last := 0, ""
		got := stampPattern.ReplaceAllStringFunc(tree.file("stdout.txt"), func(stamp string) string {
			if stamp <= last {
				t.Errorf("%q: stamp %q is not after %q", v.Writes, stamp, last)
			}
			i, last = i+1, stamp
			return fmt.Sprintf("<T%d> ", i)
		})
		if got != v.Result {
			t.Errorf("%q: got %q, want %q", v.Writes, got, v.Result)
		}
	}
}

// ticking is a clock that moves on by a second whenever it is asked.
func ticking() func() time.Time {
	at := time.Date(2026, 1, 2, 3, 4, 4, 0, time.UTC)
	return func() time.Time { at = at.Add(time.Second); return at }
}

// Merged logs are sorted as text: the lines of a stream must stay in order even
// when they arrive together, or faster than the clock ticks.
func TestStampsIncrease(t *testing.T) {
	at := time.Date(2026, 12, 31, 23, 59, 59, 999999990, time.UTC)
	s := stamper{now: func() time.Time { return at }}
	var out strings.Builder
	emit := func(p []byte) error { out.Write(p); return nil }
	for range 3 {
		s.write(bytes.Repeat([]byte("x\n"), 7), emit)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 21 {
		t.Fatalf("%d lines", len(lines))
	}
	for i := 1; i < len(lines); i++ {
		if lines[i] <= lines[i-1] {
			t.Errorf("line %d %q sorts before %q", i, lines[i], lines[i-1])
		}
	}
	if !strings.HasPrefix(lines[10], "2027-01-01T00:00:00.000000000Z") {
		t.Errorf("eleventh line is %q", lines[10])
	}
	out.Reset()
	at = at.Add(-time.Hour)
	s.write([]byte("set back\n"), emit)
	if want := "2026-12-31T22:59:59.999999990Z set back\n"; out.String() != want {
		t.Errorf("after the clock was set back: %q, want %q", out.String(), want)
	}
}

// An error leaves the stream able to go on where it stopped.
func TestStampAfterError(t *testing.T) {
	s := stamper{now: ticking()}
	fail := true
	var out strings.Builder
	emit := func(p []byte) error {
		if fail {
			return errTest
		}
		out.Write(p)
		return nil
	}
	if n, err := s.write([]byte("a\n"), emit); n != 0 || err != errTest {
		t.Fatalf("%d, %v", n, err)
	}
	fail = false
	s.write([]byte("a\nb"), emit)
	if got := stampPattern.ReplaceAllString(out.String(), "T "); got != "T a\nT b" {
		t.Errorf("got %q", got)
	}
}

func TestStampReportsHowMuchWasPassedOn(t *testing.T) {
	s := stamper{now: ticking()}
	var out strings.Builder
	calls := 0
	emit := func(p []byte) error {
		if calls++; calls > 2 {
			return errTest
		}
		out.Write(p)
		return nil
	}
	in := strings.Repeat(strings.Repeat("y", 99)+"\n", 4000)
	n, err := s.write([]byte(in), emit)
	if err != errTest {
		t.Fatalf("error %v", err)
	}
	if got := stampPattern.ReplaceAllString(out.String(), ""); got != in[:n] {
		t.Errorf("says %d bytes were passed on, but it was %d", n, len(got))
	}
}

// unstamp takes the stamps out again, as a reader of the file would.
func unstamp(t *testing.T, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		loc := stampPattern.FindStringIndex(line)
		if loc == nil || loc[0] != 0 {
			t.Fatalf("line without stamp: %.80q", line)
		}
		b.WriteString(line[loc[1]:])
	}
	return b.String()
}

func FuzzStamp(f *testing.F) {
	f.Add([]byte("a\nb\n\nc"), uint(1), uint(0))
	f.Add([]byte("x\r\ny\x00\xff"), uint(3), uint(1))
	f.Add(bytes.Repeat([]byte("z"), 300), uint(299), uint(2))
	f.Add(bytes.Repeat([]byte("\n"), 100), uint(50), uint(100))
	f.Add(append(bytes.Repeat([]byte("q"), 64), "\nr\ns"...), uint(1000), uint(64))
	f.Fuzz(func(t *testing.T, data []byte, step, room uint) {
		// A small buffer meets its end more often.
		s := stamper{now: ticking(), buf: make([]byte, 0, len(stampLayout)+1+int(room%256))}
		var out bytes.Buffer
		for rest := data; len(rest) > 0; {
			n := min(len(rest), int(step%4096)+1)
			m, err := s.write(rest[:n], func(p []byte) error { out.Write(p); return nil })
			if m != n || err != nil {
				t.Fatalf("write of %d bytes: %d, %v", n, m, err)
			}
			rest = rest[n:]
		}
		if got := unstamp(t, out.String()); got != string(data) {
			t.Errorf("without stamps %.200q, want %.200q", got, data)
		}
	})
}

func TestStampLongLine(t *testing.T) {
	s := stamper{now: ticking()}
	in := strings.Repeat("z", 5*stampBuffer) + "\n" + strings.Repeat("y", stampBuffer) + "\n"
	var out strings.Builder
	for rest := in; len(rest) > 0; {
		n := min(len(rest), stampBuffer+11)
		s.write([]byte(rest[:n]), func(p []byte) error { out.Write(p); return nil })
		rest = rest[n:]
	}
	if unstamp(t, out.String()) != in {
		t.Error("a long line was changed")
	}
}

func BenchmarkStream(b *testing.B) {
	for _, width := range []int{2, 16, 100, 1000, 1 << 20} {
		b.Run(fmt.Sprintf("line=%d", width), func(b *testing.B) {
			tree := &discardTree{}
			l, err := New(Config{Tree: tree, UUID: testUUID})
			if err != nil {
				b.Fatal(err)
			}
			s, err := l.Stream("stdout.txt", StreamOptions{Stamp: true})
			if err != nil {
				b.Fatal(err)
			}
			line := append(bytes.Repeat([]byte("x"), width-1), '\n')
			chunk := bytes.Repeat(line, max(1, (64<<10)/width)) // what a full pipe gives
			b.SetBytes(int64(len(chunk)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// discardTree costs what a copy costs.
type discardTree struct{ memTree }

var sink [stampBuffer]byte

func (*discardTree) Append(_ string, p []byte) error {
	for len(p) > 0 {
		p = p[copy(sink[:], p):]
	}
	return nil
}
