package arvados

import (
	"regexp"
	"testing"
)

func TestValidUUID(t *testing.T) {
	for _, tc := range []struct {
		s, typ string
		want   bool
	}{
		{"zzzzz-dz642-000000000000001", TypeContainer, true},
		{"zzzzz-dz642-000000000000001", "", true},
		{"zzzzz-dz642-000000000000001", TypeCollection, false},
		{"zzzzz-dz642-00000000000000A", "", false},
		{"zzzzz-dz642-0000000000000/.", "", false},
		{"zzzzz-dz642-00000000000001", "", false},
		{"zzzzz-dz642-0000000000000001", "", false},
		{"zzzzz_dz642-000000000000001", "", false},
		{"../../etc/passwd0000000000x", "", false},
		{"", "", false},
	} {
		if ValidUUID(tc.s, tc.typ) != tc.want {
			t.Errorf("%q %q: %v", tc.s, tc.typ, !tc.want)
		}
	}
}

func TestValidPDH(t *testing.T) {
	for s, want := range map[string]bool{
		EmptyPDH:                                    true,
		"83367e8913dcec0bf3fc25ed5a27eacb+49":       true,
		"83367e8913dcec0bf3fc25ed5a27eacb+49+K@zz":  false,
		"83367e8913dcec0bf3fc25ed5a27eacb+":         false,
		"83367E8913dcec0bf3fc25ed5a27eacb+49":       false,
		"83367e8913dcec0bf3fc25ed5a27eacb+49\n":     false,
		"x83367e8913dcec0bf3fc25ed5a27eacb+49":      false,
		"83367e8913dcec0bf3fc25ed5a27eacb+49/a/../": false,
		"": false,
	} {
		if ValidPDH(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

func TestRequestID(t *testing.T) {
	form := regexp.MustCompile(`^req-[0-9a-z]{20}$`)
	seen := map[string]bool{}
	digits := map[rune]bool{}
	for range 1000 {
		id := newRequestID()
		if !form.MatchString(id) || seen[id] {
			t.Fatal(id)
		}
		seen[id] = true
		for _, r := range id[4:] {
			digits[r] = true
		}
	}
	if len(digits) != 36 {
		t.Errorf("only %d different digits", len(digits))
	}
}
