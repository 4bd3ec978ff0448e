package localcluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"crunch-oci/keep"
)

// second makes another ordinary user and returns a client for them.
func (p parties) second() *client {
	p.user.t.Helper()
	u := p.root.must("POST", "users", obj{"user": obj{"email": "bob@example.com", "username": "bob", "first_name": "Bob"}})
	tok := p.root.must("POST", "api_client_authorizations", obj{"api_client_authorization": obj{"owner_uuid": u["uuid"]}})
	return p.user.as("v2/" + str(tok, "uuid") + "/" + str(tok, "api_token"))
}

func seconds(t *testing.T, from any, to string) float64 {
	t.Helper()
	a, err1 := time.Parse(time.RFC3339Nano, fmt.Sprint(from))
	b, err2 := time.Parse(time.RFC3339Nano, to)
	if err1 != nil || err2 != nil {
		t.Errorf("times %v and %v", from, to)
	}
	return b.Sub(a).Seconds()
}

func TestSigningIsPerToken(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	locator := p.user.put("secret of alice")
	manifest := ". " + locator + " 0:15:f\n"
	signer := keep.Signer{Key: p.c.ids.BlobSigningKey, TTL: signatureTTL}
	bare := strings.Split(locator, "+A")[0]
	for _, c := range []struct {
		name, manifest string
		by             *client
		status         int
	}{
		{"own signature", manifest, p.user, 200},
		{"somebody else's signature", manifest, bob, 403},
		{"the same token in another spelling", manifest, p.user.as(strings.Split(p.c.UserToken(), "/")[2]), 403},
		{"no signature", ". " + bare + " 0:15:f\n", p.user, 403},
		{"expired", ". " + signer.SignLocator(bare, p.c.UserToken(), time.Now().Add(-time.Minute)) + " 0:15:f\n", p.user, 403},
		{"broken", strings.Replace(manifest, "+A", "+Af", 1), p.user, 403},
		{"remote signature", ". " + bare + "+Rzzzzz-0123456789012345678901234567890123456789@7fffffff 0:15:f\n", p.user, 403},
		{"one of two", ". " + locator + " 37b51d194a7513e45b56f6524f2d51f2+3 0:15:f\n", p.user, 403},
		{"admin, none", ". " + bare + " 0:15:f\n", p.root, 200},
		{"admin, broken", strings.Replace(manifest, "+A", "+Af", 1), p.root, 200},
		{"empty block, none", ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:f\n", p.user, 200},
		{"empty block, broken", ". d41d8cd98f00b204e9800998ecf8427e+0+A0123456789012345678901234567890123456789@7fffffff 0:0:f\n", p.user, 403},
	} {
		a := c.by.do("POST", "collections", obj{"collection": obj{"manifest_text": c.manifest}})
		if a.status != c.status {
			t.Errorf("%s: %d, want %d: %s", c.name, a.status, c.status, a.body)
		}
		if text := str(a.obj, "manifest_text"); a.status == 200 && strings.Contains(text, "+A") {
			signed := strings.Fields(text)[1]
			if err := signer.VerifySignature(signed, c.by.token, time.Now()); err != nil {
				t.Errorf("%s: answer is not signed for the caller: %v", c.name, err)
			}
			if exp, _ := mustLocator(t, signed).SignedUntil(); time.Until(exp) < signatureTTL-time.Minute {
				t.Errorf("%s: signed until %v", c.name, exp)
			}
		}
	}
	// Hints other than signatures are kept, in the text and not in the PDH.
	coll := p.root.must("POST", "collections", obj{"collection": obj{"manifest_text": ". " + bare + "+Kzzzzz 0:15:f\n"}})
	if coll["portable_data_hash"] != p.user.must("POST", "collections", obj{"collection": obj{"manifest_text": manifest}})["portable_data_hash"] ||
		!strings.Contains(str(coll, "manifest_text"), "+Kzzzzz+A") {
		t.Errorf("hints: %v", coll)
	}
	// A collection that is thrown away soon is not signed for longer.
	soon := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	coll = p.user.must("POST", "collections", obj{"collection": obj{"manifest_text": manifest, "trash_at": soon}})
	if exp, ok := mustLocator(t, strings.Fields(str(coll, "manifest_text"))[1]).SignedUntil(); !ok || !exp.Equal(soon) {
		t.Errorf("signed until %v, trashed at %v", exp, soon)
	}
}

func mustLocator(t *testing.T, s string) keep.Locator {
	t.Helper()
	l, err := keep.ParseLocator(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTrash(t *testing.T) {
	p := setUp(t)
	const fortnight = 14 * 24 * 3600
	now := time.Now().UTC()
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339Nano) }
	near := func(name string, rec map[string]any, key string, want time.Duration) {
		t.Helper()
		if d := seconds(t, at(want), fmt.Sprint(rec[key])); d < -5 || d > 60 {
			t.Errorf("%s: %s is %v, want about %s", name, key, rec[key], at(want))
		}
	}
	for _, c := range []struct {
		name       string
		before     obj // attributes at creation
		put        obj
		status     int
		trash, del time.Duration // from now; 0: null
	}{
		{"trash_at alone", nil, obj{"trash_at": at(time.Hour)}, 200, time.Hour, time.Hour + fortnight*time.Second},
		{"both, soon", nil, obj{"trash_at": at(time.Hour), "delete_at": at(time.Hour)}, 200, time.Hour, fortnight * time.Second},
		{"both, far", nil, obj{"trash_at": at(1000 * time.Hour), "delete_at": at(2000 * time.Hour)}, 200, 1000 * time.Hour, 2000 * time.Hour},
		{"past", nil, obj{"trash_at": "2001-01-01T00:00:00Z"}, 200, time.Second, fortnight * time.Second},
		{"past, both", nil, obj{"trash_at": "2001-01-01T00:00:00Z", "delete_at": "2001-01-01T00:00:00Z"}, 200, time.Second, fortnight * time.Second},
		{"is_trashed", nil, obj{"is_trashed": true}, 200, time.Second, fortnight * time.Second},
		{"is_trashed with another trash_at", nil, obj{"is_trashed": true, "trash_at": at(time.Hour)}, 200, time.Hour, time.Hour + fortnight*time.Second},
		{"is_trashed over a set time", obj{"trash_at": at(time.Hour)}, obj{"is_trashed": true}, 200, time.Second, fortnight * time.Second},
		{"not trashed clears", obj{"trash_at": at(time.Hour)}, obj{"is_trashed": false}, 200, 0, 0},
		{"null clears both", obj{"trash_at": at(time.Hour)}, obj{"trash_at": nil}, 200, 0, 0},
		{"delete_at alone", nil, obj{"delete_at": at(time.Hour)}, 422, 0, 0},
		{"delete_at before trash_at", nil, obj{"trash_at": at(2 * time.Hour), "delete_at": at(time.Hour)}, 422, 0, 0},
		{"delete_at with set trash_at", obj{"trash_at": at(time.Hour)}, obj{"delete_at": at(1000 * time.Hour)}, 200, time.Hour, 1000 * time.Hour},
		{"something else", obj{"trash_at": at(time.Hour)}, obj{"description": "x"}, 200, time.Hour, time.Hour + fortnight*time.Second},
	} {
		uuid := str(p.user.collection(c.before, "f", "x"), "uuid")
		a := p.user.do("PUT", "collections/"+uuid, obj{"collection": c.put})
		if a.status != c.status {
			t.Errorf("%s: %d, want %d: %s", c.name, a.status, c.status, a.body)
			continue
		}
		if c.status != 200 {
			continue
		}
		// Given at creation, it comes out the same.
		atOnce := obj{}
		for _, m := range []obj{c.before, c.put} {
			for k, v := range m {
				atOnce[k] = v
			}
		}
		answers := map[string]map[string]any{"update": a.obj}
		if c.before == nil {
			answers["create"] = p.user.collection(atOnce, "f", "x")
		}
		for how, rec := range answers {
			name := c.name + ", " + how
			for key, want := range map[string]time.Duration{"trash_at": c.trash, "delete_at": c.del} {
				if want == 0 {
					if rec[key] != nil {
						t.Errorf("%s: %s is %v", name, key, rec[key])
					}
				} else {
					near(name, rec, key, want)
				}
			}
			trashed := c.trash == time.Second
			if rec["is_trashed"] != trashed || trashed == strings.Contains(str(rec, "manifest_text"), "+A") {
				t.Errorf("%s: is_trashed %v, manifest %v", name, rec["is_trashed"], rec["manifest_text"])
			}
			path := "collections/" + str(rec, "uuid")
			want := map[bool]int{true: 404, false: 200}[trashed]
			p.user.want(want, "GET", path, nil)
			p.user.want(want, "PUT", path+"?include_trash=true", obj{"collection": obj{"description": "y"}})
			p.user.must("GET", path+"?include_trash=true", nil)
		}
	}
}

// Times at the end of all time, and after it, stay such that they can be read.
func TestEndOfTime(t *testing.T) {
	p := setUp(t)
	const end = "9999-12-31T23:59:59.999999000Z"
	c := p.user.collection(obj{"trash_at": "9999-12-31T23:59:59.999999999Z"})
	if c["trash_at"] != end || c["delete_at"] != end {
		t.Errorf("%v %v", c["trash_at"], c["delete_at"])
	}
	p.user.want(422, "POST", "collections", obj{"collection": obj{"trash_at": "9999-12-31T23:59:59-01:00"}})
	r, container := p.submit(obj{"output_ttl": int64(1<<63 - 1)})
	p.lock(container)
	p.update(container, obj{"state": "Running"})
	out := str(p.user.collection(nil, "f", "x"), "portable_data_hash")
	p.update(container, obj{"state": "Complete", "exit_code": 0, "output": out})
	c = p.user.must("GET", "collections/"+str(p.request(str(r, "uuid")), "output_uuid"), nil)
	if c["trash_at"] != end || c["delete_at"] != end {
		t.Errorf("output: %v %v", c["trash_at"], c["delete_at"])
	}
	p.user.must("GET", "collections?include_trash=true", nil)
}

func TestDeleteAndUntrash(t *testing.T) {
	p := setUp(t)
	rec := p.user.collection(obj{"name": "kept"}, "f", "x")
	path := "collections/" + str(rec, "uuid")
	for range 2 {
		if a := p.user.must("DELETE", path, nil); a["is_trashed"] != true || strings.Contains(str(a, "manifest_text"), "+A") {
			t.Errorf("deleted: %v", a)
		}
	}
	p.user.want(404, "GET", path, nil)
	byPDH := "collections/" + str(rec, "portable_data_hash")
	p.user.want(404, "GET", byPDH, nil)
	p.user.must("GET", byPDH+"?include_trash=1", nil)
	other := p.user.collection(obj{"name": "kept"}, "f", "y")
	if other["name"] != "kept" {
		t.Errorf("the name of a trashed collection is not free: %v", other["name"])
	}
	p.user.want(422, "POST", path+"/untrash", nil)
	back := p.user.must("POST", path+"/untrash?ensure_unique_name=true", nil)
	if back["is_trashed"] != false || back["trash_at"] != nil || back["name"] == "kept" {
		t.Errorf("back: %v", back)
	}
	p.user.must("GET", path, nil)
	p.user.must("POST", path+"/untrash", nil)
}

func TestNames(t *testing.T) {
	p := setUp(t)
	long := strings.Repeat("é", 255)
	first := p.user.must("POST", "collections", obj{"collection": obj{"name": long}})
	p.user.want(422, "POST", "collections", obj{"collection": obj{"name": long}})
	second := p.user.must("POST", "collections", obj{"ensure_unique_name": true, "collection": obj{"name": long}})
	uuid := str(second, "uuid")
	if want := strings.Repeat("é", 237) + " (" + uuid[12:] + ")"; second["name"] != want {
		t.Errorf("unique name is %v", second["name"])
	}
	p.user.want(422, "PUT", "collections/"+uuid+"?ensure_unique_name=true", obj{"collection": obj{"name": long}})
	p.user.must("PUT", "collections/"+str(first, "uuid"), obj{"collection": obj{"name": long}}) // its own
	for range 2 {
		if c := p.user.must("POST", "collections", obj{"collection": obj{"name": ""}}); c["name"] != "" {
			t.Errorf("empty name is %v", c["name"])
		}
	}
	// In another project the name is free.
	project := p.user.must("POST", "groups", obj{"group": obj{"name": "g", "group_class": "project"}})
	p.user.want(422, "POST", "groups", obj{"group": obj{"name": "g", "group_class": "project"}})
	p.user.must("PUT", "collections/"+uuid, obj{"collection": obj{"name": long, "owner_uuid": project["uuid"]}})
}

func TestPDHOfOthersIsRefused(t *testing.T) {
	p := setUp(t)
	coll := p.user.collection(nil, "f", "data")
	manifest, pdh := str(coll, "manifest_text"), str(coll, "portable_data_hash")
	hash, _, _ := strings.Cut(pdh, "+")
	for sent, status := range map[string]int{pdh: 200, hash: 200, hash + "+1": 200, emptyPDH: 422, "nonsense": 422} {
		p.user.want(status, "POST", "collections", obj{"collection": obj{"manifest_text": manifest, "portable_data_hash": sent}})
		p.user.want(status, "PUT", "collections/"+str(coll, "uuid"), obj{"collection": obj{"portable_data_hash": sent}})
	}
	// A new text has a new PDH and new counts.
	up := p.user.must("PUT", "collections/"+str(coll, "uuid"), obj{"collection": obj{"manifest_text": ""}})
	if up["portable_data_hash"] != emptyPDH || fmt.Sprint(up["file_count"]) != "0" || fmt.Sprint(up["file_size_total"]) != "0" {
		t.Errorf("emptied: %v", up)
	}
}

func TestManifestTextInLists(t *testing.T) {
	p := setUp(t)
	coll := p.user.collection(obj{"name": "listed"}, "f", "x")
	filter := `[["uuid","=","` + str(coll, "uuid") + `"]]`
	item := func(sel string) map[string]any {
		t.Helper()
		a := p.user.get("collections", map[string]string{"filters": filter, "select": sel})
		items, _ := a.obj["items"].([]any)
		if len(items) != 1 {
			t.Fatalf("select %s: %d %s", sel, a.status, a.body)
		}
		return items[0].(map[string]any)
	}
	if i := item(""); i["manifest_text"] != "" || i["unsigned_manifest_text"] != "" || i["name"] != "listed" {
		t.Errorf("unselected: %v", i)
	}
	if i := item(`["manifest_text","unsigned_manifest_text"]`); !strings.Contains(str(i, "manifest_text"), "+A") ||
		strings.Contains(str(i, "unsigned_manifest_text"), "+A") || str(i, "unsigned_manifest_text") == "" {
		t.Errorf("selected: %v", i)
	}
}
