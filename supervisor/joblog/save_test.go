package joblog

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"crunch-oci/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// The bodies of a whole run: before Running, before output capture, the end.
func TestRequestsOfARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tree, rec, _ := newTestLog(t, Config{})
		trash := func() string { return time.Now().UTC().Add(14 * 24 * time.Hour).Format(time.RFC3339Nano) }
		manifest := func() string {
			m, _ := tree.MarshalManifest(t.Context())
			b, _ := json.Marshal(m)
			return string(b)
		}
		const sel = `{"select":["uuid","portable_data_hash"],`
		name := `"name":"logs for ` + testUUID + `","manifest_text":`

		l.Printf("Executing")
		first, err := l.Save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []string{`POST ` + sel + `"ensure_unique_name":true,"collection":{` + name + manifest() + `,"trash_at":"` + trash() + `","delete_at":"` + trash() + `"}}`}
		if got := rec.take(); !reflect.DeepEqual(got, want) {
			t.Errorf("first save:\n got %s\nwant %s", got, want)
		}
		if !strings.Contains(first, "+") {
			t.Errorf("hash %q", first)
		}

		time.Sleep(time.Hour)
		l.Printf("Container exited")
		second, err := l.Publish(t.Context())
		if err != nil || second == first {
			t.Errorf("hash %q, %v", second, err)
		}
		want = []string{
			`PUT zzzzz-4zz18-log000000000001 ` + sel + `"collection":{` + name + manifest() + `,"trash_at":"` + trash() + `","delete_at":"` + trash() + `"}}`,
			`log ` + second,
		}
		if got := rec.take(); !reflect.DeepEqual(got, want) {
			t.Errorf("second save:\n got %s\nwant %s", got, want)
		}

		if _, err = l.Final(t.Context(), "Complete"); err != nil {
			t.Error(err)
		}
		want = []string{`PUT zzzzz-4zz18-log000000000001 ` + sel + `"collection":{` + name + manifest() + `,"is_trashed":true}}`}
		if got := rec.take(); !reflect.DeepEqual(got, want) {
			t.Errorf("final save:\n got %s\nwant %s", got, want)
		}
		if got := unstamp(t, tree.file(Messages)); got != "Executing\nContainer exited\nComplete\n" {
			t.Errorf("messages %q", got)
		}
	})
}

// A final save that is the first one creates the collection in the trash.
func TestFinalWithoutAnEarlierSave(t *testing.T) {
	l, _, rec, _ := newTestLog(t, Config{})
	if _, err := l.Final(t.Context(), "Cancelled"); err != nil {
		t.Fatal(err)
	}
	got := rec.take()
	if len(got) != 1 || !strings.HasPrefix(got[0], "POST ") || !strings.Contains(got[0], `"is_trashed":true`) || strings.Contains(got[0], "trash_at") {
		t.Errorf("got %s", got)
	}
}

func TestPolicy(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	fresh := func() policy {
		return policy{period: defaultPeriod, growth: defaultGrowth, at: start, size: 100}
	}
	for _, c := range []struct {
		name  string
		after time.Duration
		size  int64
		asked bool
		want  bool
	}{
		{"a little more, a little later", 5 * time.Second, 200, false, false},
		{"half an hour", 30 * time.Minute, 101, false, true},
		{"just before half an hour", 30*time.Minute - 1, 101, false, false},
		{"half an hour, unchanged", 31 * time.Minute, 100, false, false},
		{"grown by 32 MiB", time.Second, 100 + 32<<20, false, true},
		{"grown by less", time.Second, 99 + 32<<20, false, false},
		{"asked", time.Second, 101, true, true},
		{"asked, unchanged", time.Hour, 100, true, false},
	} {
		p := fresh()
		if got := p.due(start.Add(c.after), c.size, c.asked); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	p := policy{period: defaultPeriod}
	if p.checkEvery() != 5*time.Second {
		t.Errorf("checks every %v", p.checkEvery())
	}
}

func TestRunSavesWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, rec, _ := newTestLog(t, Config{})
		out, err := l.Stream("stdout.txt", StreamOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)
		saves := func(after time.Duration) int {
			time.Sleep(after)
			synctest.Wait()
			return len(rec.take())
		}
		if n := saves(29 * time.Minute); n != 0 {
			t.Errorf("%d requests while the log is empty", n)
		}
		io.WriteString(out, "x")
		if n := saves(2 * time.Minute); n != 2 { // collection and container
			t.Errorf("%d requests after the period", n)
		}
		if n := saves(2 * time.Hour); n != 0 {
			t.Errorf("%d requests without a change", n)
		}
		out.Write(make([]byte, 32<<20))
		if n := saves(10 * time.Second); n != 2 {
			t.Errorf("%d requests after growth", n)
		}
		io.WriteString(out, "y")
		if n := saves(time.Minute); n != 0 {
			t.Errorf("%d requests for a byte", n)
		}
		l.SaveSoon()
		l.SaveSoon()
		if n := saves(0); n != 2 {
			t.Errorf("%d requests after being asked", n)
		}
		l.SaveSoon()
		if n := saves(0); n != 0 {
			t.Errorf("%d requests after being asked, unchanged", n)
		}
	})
}

func TestRunReportsAndRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tree, rec, _ := newTestLog(t, Config{})
		rec.fail = map[string]error{"POST": errTest}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)
		l.Printf("x")
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		if got := unstamp(t, tree.file(Messages)); got != "x\nerror updating log collection: save log collection: no luck\n" {
			t.Errorf("messages %q", got)
		}
		rec.mu.Lock()
		rec.fail = nil
		rec.mu.Unlock()
		rec.take()
		time.Sleep(28 * time.Minute)
		synctest.Wait()
		if got := rec.take(); len(got) != 0 {
			t.Errorf("tried again too early: %s", got)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := rec.take(); len(got) != 2 || !strings.HasPrefix(got[0], "POST") {
			t.Errorf("tried again: %s", got)
		}
	})
}

func TestRunEndsWithFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tree, rec, stderr := newTestLog(t, Config{})
		out, err := l.Stream("stdout.txt", StreamOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { l.Run(t.Context()); close(ended) }()
		if _, err := l.Final(t.Context(), "Complete"); err != nil {
			t.Fatal(err)
		}
		<-ended
		rec.take()
		size := tree.Size()
		l.Printf("crunch-run finished")
		if n, err := io.WriteString(out, "late"); n != 4 || err != nil {
			t.Errorf("late write: %d, %v", n, err)
		}
		if tree.Size() != size {
			t.Error("the log has grown after its end")
		}
		if !strings.HasSuffix(stderr.String(), "Z crunch-run finished\n") {
			t.Errorf("stderr %q", stderr.String())
		}
		if _, err := l.Publish(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("save after the end: %v", err)
		}
		if _, err := l.Stream("x", StreamOptions{}); !errors.Is(err, ErrClosed) {
			t.Errorf("file after the end: %v", err)
		}
		if got := rec.take(); len(got) != 0 {
			t.Errorf("requests after the end: %s", got)
		}
	})
}

func TestFlushErrorStillPutsOffTheTrashDate(t *testing.T) {
	l, tree, rec, _ := newTestLog(t, Config{})
	tree.flushErr = errTest
	if _, err := l.Save(t.Context()); !errors.Is(err, errTest) {
		t.Errorf("first save: %v", err)
	}
	if got := rec.take(); len(got) != 0 {
		t.Errorf("an empty collection was made: %s", got)
	}
	tree.flushErr = nil
	if _, err := l.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec.take()
	tree.flushErr = errTest
	if _, err := l.Publish(t.Context()); !errors.Is(err, errTest) {
		t.Errorf("save: %v", err)
	}
	got := rec.take()
	if len(got) != 1 || !strings.HasPrefix(got[0], "PUT") || strings.Contains(got[0], "manifest_text") || !strings.Contains(got[0], "trash_at") {
		t.Errorf("got %s", got)
	}
	if pdh, err := l.Final(t.Context(), "Complete"); !errors.Is(err, errTest) || pdh != "" {
		t.Errorf("final save: %q, %v", pdh, err)
	}
	// In the trash the next attempt would not find it.
	if got := rec.take(); len(got) != 1 || !strings.Contains(got[0], "trash_at") || strings.Contains(got[0], "is_trashed") {
		t.Errorf("got %s", got)
	}
	tree.flushErr = nil
	if pdh, err := l.Final(t.Context(), "Complete"); err != nil || pdh == "" {
		t.Errorf("final save: %q, %v", pdh, err)
	}
	if got := rec.take(); len(got) != 1 || !strings.HasPrefix(got[0], "PUT") || !strings.Contains(got[0], "is_trashed") {
		t.Errorf("got %s", got)
	}
}

// Somebody has deleted the log collection: that must not cost the run.
func TestDeletedCollectionIsMadeAgain(t *testing.T) {
	l, _, rec, _ := newTestLog(t, Config{})
	if _, err := l.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec.fail = map[string]error{"PUT": ErrCollectionGone}
	if pdh, err := l.Final(t.Context(), "Complete"); err != nil || pdh == "" {
		t.Fatalf("%q, %v", pdh, err)
	}
	got := rec.take()
	if len(got) != 3 || !strings.HasPrefix(got[2], "POST") || !strings.Contains(got[2], `"ensure_unique_name":true`) {
		t.Errorf("got %s", got)
	}
}

func TestSavesWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, tree, rec, _ := newTestLog(t, Config{})
		tree.gate = make(chan struct{})
		done := make(chan error)
		go func() { _, err := l.Publish(t.Context()); done <- err }()
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Save(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a save that could not wait: %v", err)
		}
		go func() { _, err := l.Final(t.Context(), "Complete"); done <- err }()
		synctest.Wait()
		if got := rec.take(); len(got) != 0 {
			t.Errorf("requests before the data was written: %s", got)
		}
		tree.gate <- struct{}{}
		if err := <-done; err != nil {
			t.Error(err)
		}
		tree.gate <- struct{}{}
		if err := <-done; err != nil {
			t.Error(err)
		}
		got := rec.take()
		if len(got) != 3 || !strings.HasPrefix(got[0], "POST") || !strings.HasPrefix(got[1], "log") || !strings.Contains(got[2], "is_trashed") {
			t.Errorf("requests %s", got)
		}
	})
}
