package localcluster

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// The tables of the specification about who may change what of a container,
// tried cell by cell over HTTP.

func loadVectors(t *testing.T, name string, v any) {
	t.Helper()
	raw, err := os.ReadFile("../testdata/spec/arvados-api.json")
	if err != nil {
		t.Fatal(err)
	}
	var spec struct{ Vectors map[string]json.RawMessage }
	if err := json.Unmarshal(raw, &spec); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(spec.Vectors[name], v); err != nil {
		t.Fatalf("vectors.%s: %v", name, err)
	}
}

const emptyPDH = "d41d8cd98f00b204e9800998ecf8427e+0"

// actors are the tokens of one container, by their names in the vectors.
type actors map[string]*client

// inState submits a container and brings it to a state.
func (p parties) inState(state string) (string, actors) {
	p.user.t.Helper()
	_, container := p.submit(obj{"container_count_max": 1})
	a := actors{"lock_holder": p.dispatcher, "other_admin": p.user.as(p.c.AdminToken()), "user": p.user, "container_token": p.user}
	if state == "Queued" {
		return container, a
	}
	if state != "Cancelled" {
		a["container_token"] = p.lock(container)
	}
	if state == "Running" || state == "Complete" {
		p.update(container, obj{"state": "Running"})
	}
	if state == "Complete" || state == "Cancelled" {
		p.update(container, obj{"state": state})
	}
	return container, a
}

func TestContainerUpdateCases(t *testing.T) {
	var cases []struct {
		Token, State, Note string
		Put                obj
		Status             int
	}
	loadVectors(t, "container_update_cases", &cases)
	if len(cases) < 40 {
		t.Fatalf("%d cases", len(cases))
	}
	p := setUp(t)
	p.user.collection(nil) // the empty one, for log and output
	for _, c := range cases {
		container, who := p.inState(c.State)
		if c.Token == "other_admin" && c.State == "Running" && fmt.Sprint(c.Put["runtime_status"]) == "map[]" {
			p.update(container, obj{"runtime_status": obj{"activity": "x"}}) // so that it changes the value
		}
		a := who[c.Token].do("PUT", "containers/"+container, obj{"container": c.Put})
		if a.status != c.Status {
			t.Errorf("%s in %s, %v: status %d, want %d (%s): %s", c.Token, c.State, c.Put, a.status, c.Status, c.Note, a.body)
		}
	}
}

// tryValues are values that differ from the record's.
var tryValues = obj{
	"priority": 7, "runtime_status": obj{"activity": "x"}, "log": emptyPDH, "output": emptyPDH, "output_properties": obj{"k": "v"},
	"exit_code": 4, "progress": 0.5, "cost": 0.25, "subrequests_cost": 0.5, "gateway_address": "10.0.0.1:1", "interactive_session_started": true,
	"finished_at": "2026-03-04T05:06:07Z", "started_at": "2026-03-04T05:06:07Z", "lock_count": 5,
	// Never to be changed by anybody:
	"command": []string{"rm"}, "container_image": "x", "cwd": "/x", "environment": obj{"A": "b"}, "mounts": obj{}, "output_path": "/x",
	"output_glob": []string{"x"}, "runtime_constraints": obj{"vcpus": 1}, "scheduling_parameters": obj{"max_run_time": 5},
	"locked_by_uuid": "zzzzz-gj3su-111111111111111", "auth_uuid": "zzzzz-gj3su-111111111111111", "runtime_user_uuid": "zzzzz-tpzed-111111111111111",
	"runtime_auth_scopes": []string{"GET /"}, "output_storage_classes": []string{"x"}, "service": true, "published_ports": obj{"1": obj{}},
	"owner_uuid": "zzzzz-tpzed-111111111111111",
}

// oursOnly are attributes that only we refuse: the server sets them itself
// while it carries out the transition, and no client sends them.
var oursOnly = []string{"started_at", "lock_count"}

func TestContainerUpdateTable(t *testing.T) {
	var rows []struct {
		From, To       string
		LockHolder     []string `json:"lock_holder"`
		OtherAdmin     []string `json:"other_admin"`
		ContainerToken []string `json:"container_token"`
		User           []string `json:"user"`
	}
	loadVectors(t, "container_update_permitted", &rows)
	p := setUp(t)
	p.user.collection(nil)
	// refused tells whether an attempt is answered as a refusal must be.
	attempt := func(from, role string, put obj) int {
		container, who := p.inState(from)
		return who[role].do("PUT", "containers/"+container, obj{"container": put}).status
	}
	for _, row := range rows {
		for role, permitted := range map[string][]string{"lock_holder": row.LockHolder, "other_admin": row.OtherAdmin, "container_token": row.ContainerToken, "user": row.User} {
			cell := fmt.Sprintf("%s to %s by %s", row.From, row.To, role)
			if row.From == "Locked" && row.To == "Running" && role == "other_admin" {
				permitted = nil // refused on purpose (arvados-api.md section 17)
			}
			bare := attempt(row.From, role, obj{"state": row.To})
			switch {
			case permitted == nil && bare != 403 && !(role == "container_token" && bare == 401):
				t.Errorf("%s: status %d, want 403", cell, bare)
			case permitted != nil && bare != 200:
				t.Errorf("%s: status %d, want 200", cell, bare)
			}
			if permitted == nil {
				continue
			}
			// Those that must be refused can be tried on one container.
			container, who := p.inState(row.From)
			for attr, value := range tryValues {
				if raceDetector && rand.IntN(3) > 0 {
					continue // all of them are tried without the detector
				}
				put := obj{"state": row.To, attr: value}
				if slices.Contains(permitted, attr) && !slices.Contains(oursOnly, attr) {
					if status := attempt(row.From, role, put); status != 200 {
						t.Errorf("%s with %s: status %d, want 200", cell, attr, status)
					}
				} else if a := who[role].do("PUT", "containers/"+container, obj{"container": put}); a.status != 422 {
					t.Errorf("%s with %s: status %d, want 422: %s", cell, attr, a.status, a.body)
				}
			}
			if got := p.container(container)["state"]; got != row.From {
				t.Errorf("%s: a refused update changed the state to %v", cell, got)
			}
		}
	}
}
