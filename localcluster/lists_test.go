package localcluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Pages of a list follow each other without gaps or repetitions, also those of
// distinct values, and where is an older spelling of filters.
func TestPages(t *testing.T) {
	p := setUp(t)
	project := p.user.group(obj{"name": "p", "group_class": "project"})
	var all []string
	for i := range 7 {
		all = append(all, str(p.user.collection(obj{"name": fmt.Sprint("c", i), "owner_uuid": project, "description": fmt.Sprint("d", i%3)}), "uuid"))
	}
	mine := `[["owner_uuid","=","` + project + `"]]`
	for _, order := range []string{"", "name desc", `["description","uuid"]`, "modified_at", "nosuch desc"} {
		var got []string
		for offset := 0; ; offset += 3 {
			a := p.user.get("collections", map[string]string{"filters": mine, "order": order, "limit": "3", "offset": fmt.Sprint(offset), "count": "none"})
			if a.status != 200 || a.obj["items_available"] != nil {
				t.Fatalf("%d %s", a.status, a.body)
			}
			if a.uuids() == "" {
				break
			}
			got = append(got, strings.Fields(a.uuids())...)
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(all))
		if !slices.Equal(got, want) {
			t.Errorf("order %q: %v, want %v", order, got, want)
		}
	}
	var values []string
	for offset := range 4 {
		a := p.user.get("collections", map[string]string{"filters": mine, "select": `["description"]`, "distinct": "true", "order": "description desc",
			"limit": "1", "offset": fmt.Sprint(offset)})
		if n := fmt.Sprint(a.obj["items_available"]); n != "3" {
			t.Errorf("%s values, want 3: %s", n, a.body)
		}
		for _, item := range a.obj["items"].([]any) {
			values = append(values, str(item.(map[string]any), "description"))
		}
	}
	if !slices.Equal(values, []string{"d2", "d1", "d0"}) {
		t.Errorf("distinct values %v", values)
	}
	for where, want := range map[string]int{
		`{"name":"c1"}`: 1, `{"name":["c1","c2","x"]}`: 2, `{"name":"c1","description":"d2"}`: 0, `{}`: 7, `null`: 7,
	} {
		a := p.user.get("collections", map[string]string{"filters": mine, "where": where})
		if a.status != 200 || len(strings.Fields(a.uuids())) != want {
			t.Errorf("where %s: %d %s", where, a.status, a.uuids())
		}
	}
	for _, where := range []string{`{"nosuch":1}`, `[1]`, `{"name":{}}`, `{`} {
		if a := p.user.get("collections", map[string]string{"where": where}); a.status != 422 {
			t.Errorf("where %s: %d %s", where, a.status, a.body)
		}
	}
}

// What would change a manifest in a way that this cluster does not know is not
// passed over.
func TestReplaceSegmentsIsRefused(t *testing.T) {
	p := setUp(t)
	uuid := str(p.user.collection(nil, "f", "x"), "uuid")
	p.user.want(422, "PUT", "collections/"+uuid, obj{"replace_segments": obj{"a": "b"}, "collection": obj{}})
	p.user.want(422, "POST", "collections", obj{"replace_segments": obj{"a": "b"}, "collection": obj{}})
	p.user.must("PUT", "collections/"+uuid, obj{"replace_segments": nil, "collection": obj{"name": "n"}})
}
