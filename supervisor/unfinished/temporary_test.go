package unfinished

import (
	"os"
	"path/filepath"
	"testing"
)

// What a killed writer leaves is removed by the name of its container, and
// nothing else is.
func TestRemoveTemporary(t *testing.T) {
	const mine, other = "zzzzz-dz642-000000000000001", "zzzzz-dz642-000000000000002"
	d := Dir(filepath.Join(t.TempDir(), "unfinished"))
	if err := RemoveTemporary(d.Temporary(mine)); err != nil {
		t.Errorf("no directory: %v", err)
	}
	k, err := d.Keep(Result{UUID: mine})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, uuid := range []string{mine, other} {
		if err := os.WriteFile(d.Temporary(uuid)+"1234", nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveTemporary(d.Temporary(mine)); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(string(d))
	if err != nil || len(left) != 2 || left[0].Name() != filepath.Base(d.Temporary(other)+"1234") || left[1].Name() != mine+".json" {
		t.Errorf("left: %v, %v", left, err)
	}
}
