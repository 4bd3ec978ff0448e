package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func open(t *testing.T, path string) *DB {
	t.Helper()
	db, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// The Go tables and the migrated schema describe the same columns.
func TestSchemaMatchesTables(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	defer db.Close()
	err := db.View(t.Context(), func(tx *Tx) error {
		for _, table := range Tables {
			cols, err := tx.Strings("SELECT name FROM pragma_table_info(?)", table.Name)
			if err != nil {
				return err
			}
			have := map[string]bool{}
			for _, c := range cols {
				have[c] = true
				if table.Attr(c) == nil {
					t.Errorf("%s.%s is in the schema, not in the table", table.Name, c)
				}
			}
			for _, a := range table.Attrs {
				if !have[a.Name] {
					t.Errorf("%s.%s is in the table, not in the schema", table.Name, a.Name)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestValuesSurviveReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	want := Record{
		"uuid": "zzzzz-dz642-000000000000001", "owner_uuid": "o", "created_at": time.Date(2026, 3, 4, 5, 6, 7, 890123000, time.UTC),
		"command": json.RawMessage(`["sh","-c","\u0000 é"]`), "container_image": "x+1", "output_path": "/out",
		"priority": int64(562948180820544110), "progress": 0.5, "state": "Queued", "service": true,
		"environment": json.RawMessage(`{"A":"b\u0000c"}`), "exit_code": nil, "log": nil, "cwd": "a\x00b",
	}
	db := open(t, path)
	if err := db.Update(t.Context(), func(tx *Tx) error { return tx.Insert(Containers, want) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, path)
	defer db.Close()
	if err := db.View(t.Context(), func(tx *Tx) error {
		got, err := tx.Get(Containers, want.Str("uuid"))
		if err != nil {
			return err
		}
		for k, v := range want {
			if !reflect.DeepEqual(got[k], v) {
				t.Errorf("%s: got %#v, want %#v", k, got[k], v)
			}
		}
		if _, err := tx.Get(Containers, "nosuch"); !errors.Is(err, ErrNotFound) {
			t.Errorf("missing record: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestFailedTransactionLeavesNothing(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	defer db.Close()
	boom := errors.New("boom")
	insert := func(tx *Tx) error { return tx.SetSetting("k", "v") }
	if err := db.Update(t.Context(), func(tx *Tx) error { insert(tx); return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	func() {
		defer func() { recover() }()
		db.Update(t.Context(), func(tx *Tx) error { insert(tx); panic("oops") })
	}()
	db.View(t.Context(), func(tx *Tx) error {
		if v, err := tx.Setting("k"); v != "" || err != nil {
			t.Errorf("setting is %q, %v", v, err)
		}
		return nil
	})
	if err := db.Update(t.Context(), insert); err != nil { // the writer is still usable
		t.Fatal(err)
	}
}

func TestDuplicateIsRecognised(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	defer db.Close()
	add := func(uuid string) error {
		return db.Update(t.Context(), func(tx *Tx) error {
			return tx.Insert(Groups, Record{"uuid": uuid, "owner_uuid": "o", "name": "n"})
		})
	}
	if err := add("a"); err != nil {
		t.Fatal(err)
	}
	if err := add("b"); !errors.Is(err, ErrDuplicate) {
		t.Errorf("same owner and name: %v", err)
	}
	if err := add("a"); !errors.Is(err, ErrDuplicate) {
		t.Errorf("same uuid: %v", err)
	}
}

func TestReadersAndWriterAtOnce(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	defer db.Close()
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for j := range 20 {
				if err := db.Update(t.Context(), func(tx *Tx) error {
					return tx.Insert(Logs, Record{"uuid": fmt.Sprintf("%d-%d", i, j), "owner_uuid": "o"})
				}); err != nil {
					t.Error(err)
				}
				if err := db.View(t.Context(), func(tx *Tx) error { _, err := tx.Count(Logs, Query{}); return err }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	db.View(t.Context(), func(tx *Tx) error {
		if n, err := tx.Count(Logs, Query{}); n != 200 || err != nil {
			t.Errorf("%d rows, %v", n, err)
		}
		return nil
	})
}

func TestInterruptedReadEnds(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	defer db.Close()
	ctx, cancel := context.WithCancel(t.Context())
	err := db.View(ctx, func(tx *Tx) error {
		cancel()
		_, err := tx.Int("WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n) SELECT count(*) FROM n")
		return err
	})
	if err == nil {
		t.Error("an endless query ended without an error")
	}
	if err := db.View(t.Context(), func(tx *Tx) error { _, err := tx.Count(Logs, Query{}); return err }); err != nil {
		t.Errorf("the connection is unusable afterwards: %v", err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := open(t, path)
	if err := db.Update(t.Context(), func(tx *Tx) error {
		return tx.Exec("INSERT INTO schema_versions VALUES (999, '')")
	}); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := Open(path, Options{}); !errors.Is(err, ErrNewer) {
		t.Errorf("got %v", err)
	}
}

func TestDamagedFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := Open(path, Options{})
	if err == nil {
		db.Close()
		t.Fatal("opened")
	}
	if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v", err)
	}
}

func TestLike(t *testing.T) {
	for _, c := range []struct {
		value, pattern string
		want           bool
	}{
		{"", "", true}, {"", "%", true}, {"a", "", false}, {"abc", "a%", true}, {"abc", "%c", true},
		{"abc", "%b%", true}, {"abc", "a_c", true}, {"abc", "A%", false}, {"a%c", `a\%c`, true}, {"abc", `a\%c`, false},
		{"aXbXc", "%X%c", true}, {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "%a%a%a%a%a%a%c", false}, {"é", "_", true},
	} {
		if got := Like(c.value, c.pattern); got != c.want {
			t.Errorf("Like(%q, %q) = %v", c.value, c.pattern, got)
		}
	}
}

// The database holds tokens, and so do its log and its index.
func TestFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // a new one, and one that is there
		db := open(t, filepath.Join(dir, "db"))
		if err := db.Update(t.Context(), func(tx *Tx) error { return tx.SetSetting("a", "b") }); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) < 2 {
			t.Fatalf("%v %v", entries, err)
		}
		for _, e := range entries {
			if fi, err := e.Info(); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v %v", e.Name(), fi.Mode(), err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
