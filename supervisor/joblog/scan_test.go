package joblog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestMountScannerVectors(t *testing.T) {
	for _, v := range vectors[struct {
		Writes        []string
		Warning       string
		WarningDetail string `json:"warning_detail"`
	}](t, "arv_mount_scanner") {
		reports, warning, detail := 0, "", ""
		s := MountScanner{Report: func(pattern, line string) {
			reports, warning, detail = reports+1, "arv-mount: "+pattern, line
		}}
		for _, w := range v.Writes {
			if n, err := io.WriteString(&s, w); n != len(w) || err != nil {
				t.Fatalf("write: %d, %v", n, err)
			}
		}
		if warning != v.Warning || detail != v.WarningDetail || reports > 1 {
			t.Errorf("%q: %q, %q, %d reports; want %q, %q", v.Writes, warning, detail, reports, v.Warning, v.WarningDetail)
		}
	}
}

// Of the lines with the same pattern the first counts, whatever follows it.
func TestMountScannerTakesTheFirst(t *testing.T) {
	detail := ""
	s := MountScanner{Report: func(_, line string) { detail = line }}
	io.WriteString(&s, "Keep write error 1\nKeep write error 2\nBlock not found error\n")
	if detail != "Keep write error 1" {
		t.Errorf("reported %q", detail)
	}
}

// A process that never ends its line must not fill the memory.
func TestMountScannerOverlongLine(t *testing.T) {
	detail := ""
	s := MountScanner{Report: func(_, line string) { detail = line }}
	io.WriteString(&s, "Keep write error ")
	for range 100 {
		s.Write(bytes.Repeat([]byte("x"), 10000))
	}
	if cap(s.lines.partial) > 4*maxLine {
		t.Errorf("holds %d bytes", cap(s.lines.partial))
	}
	if len(detail) != maxLine || !strings.HasPrefix(detail, "Keep write error x") {
		t.Errorf("reported %d bytes, %.30q", len(detail), detail)
	}
}

func FuzzMountScanner(f *testing.F) {
	f.Add([]byte("a\nKeep write error\nb"), uint(3))
	f.Add([]byte("Block not found error\nKeep write error\n"), uint(100))
	f.Add([]byte("xKeep write errorBlock not found error\n\n"), uint(7))
	f.Fuzz(func(t *testing.T, data []byte, step uint) {
		// Byte by byte each line is a chunk of its own: the first line that
		// has an error is the one reported.
		want := ""
		for line := range strings.Lines(string(data)) {
			if !strings.HasSuffix(line, "\n") || len(line) > maxLine {
				return // seen in part, or not at all
			}
			if want == "" && matches(line) {
				want = strings.TrimSuffix(line, "\n")
			}
		}
		got := ""
		s := MountScanner{Report: func(_, line string) { got = line }}
		for i := range data {
			s.Write(data[i : i+1])
		}
		if got != want {
			t.Errorf("reported %q, want %q", got, want)
		}
		// In larger chunks another line may win, but never none.
		got = ""
		s = MountScanner{Report: func(_, line string) { got = line }}
		for rest := data; len(rest) > 0; {
			n := min(len(rest), int(step%100000)+1)
			s.Write(rest[:n])
			rest = rest[n:]
		}
		if (got == "") != (want == "") || got != "" && !matches(got) {
			t.Errorf("in chunks of %d: reported %q, want like %q", step%100000+1, got, want)
		}
	})
}

func matches(line string) bool {
	for _, p := range mountErrors {
		if strings.Contains(line, p) {
			return true
		}
	}
	return false
}

func TestKeepstoreFilterVectors(t *testing.T) {
	for _, v := range vectors[struct {
		Writes []string
		Kept   string
	}](t, "keepstore_errors_filter") {
		var out bytes.Buffer
		f := KeepstoreFilter{W: &out}
		for _, w := range v.Writes {
			io.WriteString(&f, w)
		}
		if out.String() != v.Kept {
			t.Errorf("%q: kept %q, want %q", v.Writes, out.String(), v.Kept)
		}
	}
}

// The same filter, as the page about command line and dispatchers has it.
func TestKeepstoreFilterLines(t *testing.T) {
	for _, v := range vectorsOf[struct{ In, Out string }](t, "cli-and-dispatch.json", "keepstore_log_errors_filter") {
		var out bytes.Buffer
		f := KeepstoreFilter{W: &out}
		io.WriteString(&f, v.In)
		if out.String() != v.Out {
			t.Errorf("%q: kept %q, want %q", v.In, out.String(), v.Out)
		}
	}
}

func TestKeepstoreFilterEnd(t *testing.T) {
	var out bytes.Buffer
	f := KeepstoreFilter{W: &out}
	io.WriteString(&f, "{\"msg\":\"request\"}\npanic: out of")
	io.WriteString(&f, " fish")
	if err := f.Close(); err != nil || out.String() != "panic: out of fish" {
		t.Errorf("kept %q, %v", out.String(), err)
	}
	out.Reset()
	io.WriteString(&f, `{"msg":"response","respStatusCode":199}`+"\n")
	if out.Len() == 0 {
		t.Error("status 199 is not a success")
	}
	long := "{" + strings.Repeat("y", 3*maxLine) + "\n"
	out.Reset()
	f = KeepstoreFilter{W: &out}
	io.WriteString(&f, "\n"+long+"{\"msg\":\"request\"}\n")
	if out.String() != long {
		t.Errorf("of an overlong line %d bytes were kept, want %d", out.Len(), len(long))
	}
	f = KeepstoreFilter{W: failingWriter{}}
	if _, err := io.WriteString(&f, "x\n"); !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
}

func TestParseKeepstoreLogs(t *testing.T) {
	for in, want := range map[string]KeepstoreLogs{"": KeepstoreNone, "none": KeepstoreNone, "all": KeepstoreAll, "errors": KeepstoreErrors} {
		if got, err := ParseKeepstoreLogs(in); got != want || err != nil {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if _, err := ParseKeepstoreLogs("All"); !errors.Is(err, ErrKeepstoreLogs) {
		t.Errorf("All: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errTest }

func TestLinesKeepsEveryByte(t *testing.T) {
	text := "a\n\nbb\n" + strings.Repeat("c", 2*maxLine+7) + "\nd\n" + strings.Repeat("e", maxLine) + "\nf"
	for _, step := range []int{1, 2, 1000, maxLine - 1, maxLine, maxLine + 1, len(text)} {
		var l lines
		var got strings.Builder
		starts := 0
		f := func(piece []byte, first bool) {
			got.Write(piece)
			if first {
				starts++
			}
			if len(piece) > maxLine {
				t.Errorf("piece of %d bytes", len(piece))
			}
		}
		for rest := []byte(text); len(rest) > 0; {
			n := min(step, len(rest))
			l.write(rest[:n], f)
			rest = rest[n:]
		}
		l.rest(f)
		if got.String() != text || starts != 7 {
			t.Errorf("step %d: %s", step, fmt.Sprint(got.Len(), len(text), starts))
		}
	}
}
