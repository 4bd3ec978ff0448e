package query

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crunch-oci/localcluster/internal/store"
)

func testDB(t testing.TB) *store.DB {
	t.Helper()
	db, err := store.Open(filepath.Join(t.TempDir(), "db"), store.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestFilters(t *testing.T) {
	db := testDB(t)
	at := time.Date(2026, 3, 4, 5, 6, 7, 890000000, time.UTC)
	add := func(n int, more store.Record) {
		r := store.Record{
			"uuid": fmt.Sprintf("zzzzz-dz642-%015d", n), "owner_uuid": "o", "command": json.RawMessage("[]"), "container_image": "i",
			"output_path": "/", "state": "Queued", "created_at": at.Add(time.Duration(n) * time.Hour), "modified_at": at,
		}
		for k, v := range more {
			r[k] = v
		}
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.Insert(store.Containers, r) }); err != nil {
			t.Fatal(err)
		}
	}
	add(1, store.Record{"priority": int64(5), "log": "abc_d", "output_properties": json.RawMessage(`{"k":"v","n":1.5,"l":["x","y"],"z":null}`)})
	add(2, store.Record{"priority": int64(562948180820544110), "state": "Running", "cwd": "X%", "progress": 0.5, "output_properties": json.RawMessage(`{"k":"w","n":10}`)})
	add(3, store.Record{"priority": int64(0), "log": "", "service": true, "output_glob": json.RawMessage(`["a","b"]`)})
	for _, c := range []struct {
		filter string
		want   string // the last digits of the uuids found, in order
	}{
		{`[]`, "123"}, {``, "123"},
		{`[["state","=","Queued"]]`, "13"}, {`[["state","!=","Queued"]]`, "2"},
		{`[["priority",">","0"]]`, "12"}, {`[["priority",">",5]]`, "2"}, {`[["priority","=",562948180820544110]]`, "2"},
		{`[["priority",">=",5.0]]`, "12"}, {`[["priority","\u003e","0"],["state","=","Queued"]]`, "1"},
		{`[["log","=",null]]`, "2"}, {`[["log","!=",null]]`, "13"}, {`[["log","!=","abc_d"]]`, "23"},
		{`[["log","not in",["abc_d"]]]`, "23"}, {`[["log","in",["abc_d",null]]]`, "12"}, {`[["log","in",[]]]`, ""},
		{`[["log","not in",[null]]]`, "13"}, {`[["state","in",["Queued","Running"]]]`, "123"},
		{`[["log","like","abc\\_%"]]`, "1"}, {`[["state","like","q%"]]`, ""}, {`[["state","ilike","q%"]]`, "13"},
		{`[["created_at",">","2026-03-04T08:06:07+01:00"]]`, "23"}, {`[["created_at","=","2026-03-04T06:06:07.89Z"]]`, "1"},
		{`[["service","=",true]]`, "3"}, {`[["service","=",false]]`, "12"},
		{`[["uuid","is_a","arvados#container"]]`, "123"}, {`[["uuid","is_a",["arvados#group","arvados#nosuch"]]]`, ""},
		{`[["output_properties.k","=","v"]]`, "1"}, {`[["output_properties.k","!=","v"]]`, "23"}, {`[["output_properties.n","<",9]]`, "1"},
		{`[["output_properties.k","in",["v","w"]]]`, "12"}, {`[["output_properties.k","like","_"]]`, "12"}, {`[["output_properties.z","=",null]]`, "123"},
		{`[["output_properties","exists","z"]]`, "1"}, {`[["output_properties.z","exists",false]]`, "23"}, {`[["output_properties.z","exists",true]]`, "1"},
		{`[["output_properties.l","contains","y"]]`, "1"}, {`[["output_properties.l","contains",["x","q"]]]`, ""}, {`[["output_properties.k","contains","w"]]`, "2"},
		{`[["output_glob","contains","b"]]`, "3"}, {`[["output_properties","contains","k"]]`, "12"},
		{`[["containers.state","=","Running"]]`, "2"}, {`[["progress","<",1]]`, "2"}, {`[["progress","=",null]]`, "13"},
		{`[["output_properties.k' OR 1=1 --","=","v"]]`, ""},
	} {
		conds, err := Filters(store.Containers, []byte(c.filter))
		if err != nil {
			t.Errorf("%s: %v", c.filter, err)
			continue
		}
		var got []byte
		if err := db.View(t.Context(), func(tx *store.Tx) error {
			rs, err := tx.Select(store.Containers, store.Query{Columns: []string{"uuid"}, Where: conds, OrderBy: "uuid", Limit: -1})
			for _, r := range rs {
				got = append(got, r.Str("uuid")[26])
			}
			return err
		}); err != nil {
			t.Errorf("%s: %v", c.filter, err)
		}
		if string(got) != c.want {
			t.Errorf("%s: found %q, want %q", c.filter, got, c.want)
		}
	}
}

func TestBadFilters(t *testing.T) {
	for _, c := range []struct {
		filter string
		syntax bool
	}{
		{`[xx`, true}, {`[["a",`, true}, {`{}`, false}, {`5`, false}, {`[5]`, false}, {`[["state","="]]`, false}, {`[["nosuch","=","x"]]`, false},
		{`[["state","<>","x"]]`, false}, {`[["state",5,"x"]]`, false}, {`[["priority",">","x"]]`, false}, {`[["priority",">",null]]`, false},
		{`[["priority","in",["1"]]]`, false}, {`[["priority","in",5]]`, false}, {`[["state","in",null]]`, false}, {`[["created_at",">","yesterday"]]`, false},
		{`[["created_at",">",5]]`, false}, {`[["state","=",5]]`, false}, {`[["state","=",["x"]]]`, false}, {`[["service","=","true"]]`, false},
		{`[["secret_mounts","=","x"]]`, false}, {`[["secret_mounts.k","=","x"]]`, false}, {`[["runtime_token","like","%"]]`, false},
		{`[["state.x","=","x"]]`, false}, {`[["priority","like","5"]]`, false}, {`[["state","contains","x"]]`, false}, {`[["state","exists","x"]]`, false},
		{`[["environment","=",{}]]`, false}, {`[["state","is_a","arvados#user"]]`, false},
	} {
		_, err := Filters(store.Containers, []byte(c.filter))
		if err == nil || errors.Is(err, ErrSyntax) != c.syntax {
			t.Errorf("%s: %v", c.filter, err)
		}
	}
}

func TestOrder(t *testing.T) {
	const tail = `, "modified_at" DESC, "uuid" DESC`
	for in, want := range map[string]string{
		``: tail[2:], `null`: tail[2:], `priority desc`: `"priority" DESC NULLS FIRST` + tail, `["priority desc", "nosuch"]`: `"priority" DESC NULLS FIRST` + tail,
		`"priority,log DESC"`: `"priority" ASC NULLS LAST, "log" DESC NULLS FIRST` + tail, `uuid`: `"uuid" ASC NULLS LAST`,
		`["containers.created_at asc"]`: `"created_at" ASC NULLS LAST` + tail, `runtime_token`: tail[2:],
	} {
		if got, err := Order(store.Containers, []byte(in)); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{`[5]`, `["priority sideways"]`, `["x`} {
		if got, err := Order(store.Containers, []byte(in)); err == nil {
			t.Errorf("%s gave %s", in, got)
		}
	}
}

func TestDistinctOrder(t *testing.T) {
	columns := []string{"state", "priority"}
	for in, want := range map[string]string{
		``: `"state", "priority"`, `priority desc`: `"priority" DESC NULLS FIRST, "state"`, `["uuid","state"]`: `"state" ASC NULLS LAST, "priority"`,
	} {
		if got, err := DistinctOrder(store.Containers, []byte(in), columns); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
}

// Whatever a client sends, the SQL that results is one that SQLite accepts.
func FuzzFilters(f *testing.F) {
	for _, s := range []string{`[["priority",">","0"]]`, `[["properties.a","exists",true]]`, `[["uuid","in",["x",null]]]`, `[["log","like","%"]]`,
		`[["output_properties.\"","contains",[1]]]`, `[["created_at","<","2026-03-04T05:06:07Z"]]`, `[["a\u0000","=",1e999]]`, `[["progress","=","nan"]]`} {
		f.Add(s)
	}
	db := testDB(f)
	f.Fuzz(func(t *testing.T, s string) {
		conds, err := Filters(store.Containers, []byte(s))
		if err != nil {
			return
		}
		err = db.View(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Select(store.Containers, store.Query{Where: conds, Limit: 10})
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", s, err)
		}
	})
}

func TestLongInListStaysWithinLimits(t *testing.T) {
	list := slices.Repeat([]string{`"x"`}, maxOperands+1)
	if _, err := Filters(store.Containers, []byte(`[["uuid","in",[`+strings.Join(list, ",")+`]]]`)); err == nil {
		t.Error("an over-long list was accepted")
	}
	conds, err := Filters(store.Containers, []byte(`[["uuid","in",[`+strings.Join(list[1:], ",")+`]]]`))
	if err != nil {
		t.Fatal(err)
	}
	if err := testDB(t).View(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Count(store.Containers, store.Query{Where: conds})
		return err
	}); err != nil {
		t.Error(err)
	}
}
