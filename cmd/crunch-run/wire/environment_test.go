package wire

import (
	"encoding/json"
	"os"
	"testing"
	"time"
)

// The instance type tells the price as long as no price file does.
func TestHourlyPriceVectors(t *testing.T) {
	text, err := os.ReadFile("../../../testdata/spec/lifecycle.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Cost []struct {
			Name         string
			InstanceType string             `json:"instance_type_env"`
			Files        [][]map[string]any `json:"price_files_loaded_in_order"`
			Start, Now   time.Time
			Cost         float64
		}
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, v := range all.Cost {
		if len(v.Files) > 0 && len(v.Files[0]) > 0 {
			continue // price files are not read yet
		}
		ran++
		if got := hourlyPrice(v.InstanceType) * v.Now.Sub(v.Start).Hours(); got != v.Cost {
			t.Errorf("%s: cost %v, want %v", v.Name, got, v.Cost)
		}
	}
	if ran != 4 {
		t.Errorf("%d vectors without price files", ran)
	}
	for _, strange := range []string{`{"Price":"1"}`, `[]`, `{"Price":null}`} {
		if got := hourlyPrice(strange); got != 0 {
			t.Errorf("%s: price %v", strange, got)
		}
	}
}
