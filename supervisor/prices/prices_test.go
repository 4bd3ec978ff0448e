package prices

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// vector is an entry of "cost" in either file of vectors.
type vector struct {
	Name         string
	InstanceType string `json:"instance_type_env"`
	Start        time.Time
	RunStart     time.Time         `json:"run_start"`
	Texts        []string          `json:"price_files"`
	Files        []json.RawMessage `json:"price_files_loaded_in_order"`
	Now          time.Time
	Cost         float64
	Log          string
	Lines        []string `json:"log_lines"`
	History      []Price
}

// changed are the costs that differ from the reference's.
var changed = map[string]float64{
	// cli-and-dispatch section 17: prices of the future are not today's.
	"only a future price: filler applies": 0,
}

func TestVectors(t *testing.T) {
	ran := 0
	for _, file := range []string{"lifecycle.json", "cli-and-dispatch.json"} {
		text, err := os.ReadFile("../../testdata/spec/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var all struct{ Cost []vector }
		if err := json.Unmarshal(text, &all); err != nil {
			t.Fatal(err)
		}
		for _, v := range all.Cost {
			t.Run(v.Name, v.run)
			ran++
		}
	}
	if ran != 8+19 {
		t.Errorf("%d vectors", ran)
	}
}

func (v vector) run(t *testing.T) {
	for _, f := range v.Files {
		v.Texts = append(v.Texts, string(f))
	}
	if v.Start.IsZero() {
		v.Start = v.RunStart
	}
	var h History
	var log []string
	for _, text := range v.Texts {
		received, err := Parse([]byte(text))
		if err != nil {
			log = append(log, fmt.Sprintf("loadPrices: decode: %v", err))
			continue
		}
		var news []Price
		h, news = h.Add(received)
		for _, p := range news {
			log = append(log, p.String())
		}
	}
	want, ok := changed[v.Name]
	if !ok {
		want = v.Cost
	}
	if got := h.Cost(v.Start, v.Now, OfInstanceType(v.InstanceType)); math.Abs(got-want) > 1e-9*math.Max(1, want) {
		t.Errorf("cost %v, want %v", got, want)
	}
	if v.Log != "" {
		v.Lines = strings.Split(strings.TrimSuffix(v.Log, "\n"), "\n")
	}
	if !slices.Equal(log, v.Lines) {
		t.Errorf("log\n%s\nwant\n%s", strings.Join(log, "\n"), strings.Join(v.Lines, "\n"))
	}
	if v.History != nil && !slices.EqualFunc(h, v.History, func(a, b Price) bool { return a.StartTime.Equal(b.StartTime) && a.Price == b.Price }) {
		t.Errorf("history %v, want %v", h, v.History)
	}
}

// Of two prices for one moment the one received last counts.
func TestCorrection(t *testing.T) {
	at := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	h, _ := History(nil).Add([]Price{{at, 1}})
	h, news := h.Add([]Price{{at, 3}})
	if got := h.Cost(at, at.Add(time.Hour), 0); got != 3 || len(news) != 0 {
		t.Errorf("cost %v, news %v", got, news)
	}
}
