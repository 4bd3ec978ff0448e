package cgroups

import (
	"reflect"
	"testing"
)

func TestParseList(t *testing.T) {
	for text, want := range map[string][]int{"": nil, "\n": nil, "0": {0}, "0-2,7\n": {0, 1, 2, 7}, "3,5-5": {3, 5}} {
		if got, err := parseList(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"x", "1-", "2-1", "-1", "0-999999999", "0-65535,0-65535"} {
		if got, err := parseList(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
	if got := formatList([]int{0, 2}); got != "0,2" {
		t.Error(got)
	}
}
