package keep_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"crunch-oci/keep"
)

// vectors loads one list of the specification's vectors.
func vectors[T any](t testing.TB, key string) []T {
	t.Helper()
	text, err := os.ReadFile("../testdata/spec/keep.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	var list []T
	if err := json.Unmarshal(all[key], &list); err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		t.Fatalf("no vectors %q", key)
	}
	return list
}

func TestLocatorVectors(t *testing.T) {
	type ks struct {
		Hash           string
		Size           int64
		Signed, Remote bool
	}
	for _, v := range vectors[struct {
		Locator           string
		Strict, API       bool
		ClientOK          bool  `json:"client_ok"`
		ClientSize        int64 `json:"client_size"`
		Keepstore         *ks
		StrippedAllString string `json:"stripped_all"`
	}](t, "locators") {
		loc, err := keep.ParseLocator(v.Locator)
		if (err == nil) != v.Strict {
			t.Errorf("ParseLocator(%q): %v, want accepted %v", v.Locator, err, v.Strict)
		}
		if err == nil {
			if loc.String() != v.Locator || loc.Hash() != strings.ToLower(v.StrippedAllString) {
				t.Errorf("ParseLocator(%q) = %q, hash %q", v.Locator, loc, loc.Hash())
			}
			if v.ClientOK && loc.Size() != v.ClientSize {
				t.Errorf("%q: size %d, want %d", v.Locator, loc.Size(), v.ClientSize)
			}
		} else if !errors.Is(err, keep.ErrInvalidLocator) {
			t.Errorf("ParseLocator(%q): %v is no ErrInvalidLocator", v.Locator, err)
		}
		if got := keep.IsAPILocator(v.Locator); got != v.API {
			t.Errorf("IsAPILocator(%q) = %v", v.Locator, got)
		}
		size, ok := keep.ClientLocatorSize(v.Locator)
		if ok != v.ClientOK || ok && size != v.ClientSize {
			t.Errorf("ClientLocatorSize(%q) = %d, %v", v.Locator, size, ok)
		}
		p, err := keep.ParsePathLocator(v.Locator)
		if (err == nil) != (v.Keepstore != nil) {
			t.Errorf("ParsePathLocator(%q): %v", v.Locator, err)
		} else if err == nil {
			if got := (ks{p.Hash, p.Size, p.Signed, p.Remote}); got != *v.Keepstore {
				t.Errorf("ParsePathLocator(%q) = %+v, want %+v", v.Locator, got, *v.Keepstore)
			}
		}
	}
}

func TestSignVectors(t *testing.T) {
	for _, v := range vectors[struct {
		Key, Token, Locator, Signed string
		TTL                         float64 `json:"ttl_seconds"`
		Expiry                      int64   `json:"expiry_unix"`
	}](t, "sign") {
		s := keep.Signer{Key: v.Key, TTL: time.Duration(v.TTL * float64(time.Second))}
		if got := s.SignLocator(v.Locator, v.Token, time.Unix(v.Expiry, 0)); got != v.Signed {
			t.Errorf("sign %q: %q, want %q", v.Locator, got, v.Signed)
		}
	}
	for _, v := range vectors[struct {
		Key, Token, Manifest, Signed string
		TTL                          float64 `json:"ttl_seconds"`
		Expiry                       int64   `json:"expiry_unix"`
	}](t, "sign_manifest") {
		s := keep.Signer{Key: v.Key, TTL: time.Duration(v.TTL * float64(time.Second))}
		if got := s.SignManifest(v.Manifest, v.Token, time.Unix(v.Expiry, 0)); got != v.Signed {
			t.Errorf("sign manifest: %q, want %q", got, v.Signed)
		}
	}
}

func TestVerifyVectors(t *testing.T) {
	results := map[string]error{
		"ok": nil, "missing": keep.ErrSignatureMissing,
		"expired": keep.ErrSignatureExpired, "invalid": keep.ErrSignatureInvalid,
	}
	for _, v := range vectors[struct {
		Note, Key, Token, Locator, Result string
		TTL                               float64 `json:"ttl_seconds"`
	}](t, "verify") {
		s := keep.Signer{Key: v.Key, TTL: time.Duration(v.TTL * float64(time.Second))}
		want, known := results[v.Result]
		if !known {
			t.Fatalf("unknown result %q", v.Result)
		}
		got := s.VerifySignature(v.Locator, v.Token, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
		if got != want {
			t.Errorf("%s: %v, want %v", v.Note, got, want)
		}
	}
}

func TestSaltVectors(t *testing.T) {
	results := map[string]error{
		"obsolete": keep.ErrObsoleteToken, "bad format": keep.ErrTokenFormat, "already salted": keep.ErrTokenSalted,
	}
	for _, v := range vectors[struct{ Token, Remote, Salted, Error string }](t, "salt_token") {
		got, err := keep.SaltToken(v.Token, v.Remote)
		if got != v.Salted || err != results[v.Error] {
			t.Errorf("SaltToken(%q, %q) = %q, %v", v.Token, v.Remote, got, err)
		}
	}
}

func TestEscapeVectors(t *testing.T) {
	unhex := func(s string) string {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, v := range vectors[struct {
		Raw       string `json:"raw_bytes"`
		Escaped   string `json:"escaped_bytes"`
		Roundtrip bool
	}](t, "escape") {
		raw, want := unhex(v.Raw), unhex(v.Escaped)
		if got := keep.EscapeName(raw); got != want {
			t.Errorf("EscapeName(%q) = %q, want %q", raw, got, want)
		}
		if got := keep.UnescapeName(want); (got == raw) != v.Roundtrip {
			t.Errorf("UnescapeName(%q) = %q", want, got)
		}
	}
	for _, v := range vectors[struct {
		Escaped string
		Raw     string `json:"raw_bytes"`
	}](t, "unescape") {
		if got := keep.UnescapeName(v.Escaped); got != unhex(v.Raw) {
			t.Errorf("UnescapeName(%q) = %q, want %q", v.Escaped, got, unhex(v.Raw))
		}
	}
}

func TestPDHVectors(t *testing.T) {
	for _, v := range vectors[struct{ Manifest, PDH string }](t, "pdh") {
		if got := keep.PortableDataHash(v.Manifest); got != v.PDH {
			t.Errorf("PDH of %q: %s, want %s", v.Manifest, got, v.PDH)
		}
	}
}

func TestOrderVectors(t *testing.T) {
	for _, v := range vectors[struct {
		Note     string
		Services map[string]string
		Probes   []struct {
			Hash      string
			Order     []string
			OrderFUSE []string `json:"order_fuse"`
		}
	}](t, "rendezvous") {
		var services []keep.Service
		for uuid, url := range v.Services {
			services = append(services, keep.Service{UUID: uuid, URL: url})
		}
		for _, p := range v.Probes {
			var got []string
			for _, s := range keep.ProbeOrder(p.Hash, services) {
				got = append(got, s.URL)
			}
			if !slices.Equal(got, p.Order) {
				t.Errorf("%s: %s: %v, want %v", v.Note, p.Hash, got, p.Order)
			}
			if p.OrderFUSE == nil {
				p.OrderFUSE = p.Order
			}
			got = nil
			for _, s := range keep.MountProbeOrder(p.Hash, services) {
				got = append(got, s.URL)
			}
			if !slices.Equal(got, p.OrderFUSE) {
				t.Errorf("%s: %s: the mount's order is %v, want %v", v.Note, p.Hash, got, p.OrderFUSE)
			}
		}
	}
	for _, v := range vectors[struct {
		Rendezvous string
		Config     string `json:"from_cluster_config"`
		API        string `json:"from_api_server"`
	}](t, "service_uuid") {
		if got := keep.ServiceUUID("zzzzz", v.Rendezvous); got != v.Config {
			t.Errorf("ServiceUUID(%q) = %q", v.Rendezvous, got)
		}
		if got := keep.ListedServiceUUID("zzzzz", v.Rendezvous); got != v.API {
			t.Errorf("ListedServiceUUID(%q) = %q", v.Rendezvous, got)
		}
	}
	for _, v := range vectors[struct {
		Mounts []keep.Mount
		Probes []struct {
			Hash  string
			Order []string
		}
	}](t, "keepstore_mount_order") {
		for _, p := range v.Probes {
			var got []string
			for _, m := range keep.MountOrder(p.Hash, v.Mounts) {
				got = append(got, m.UUID)
			}
			if !slices.Equal(got, p.Order) {
				t.Errorf("mounts for %s: %v, want %v", p.Hash, got, p.Order)
			}
		}
	}
}

// notStrict is the one accepted manifest with a locator that the strict rule
// refuses; this reader enforces the rule.
const notStrict = "locator is hardly checked by the file view"

type treeEntry struct {
	Path     string
	Dir      bool
	Size     int64
	Segments []struct {
		Locator        string
		Offset, Length int64
	}
}

func TestManifestVectors(t *testing.T) {
	for _, v := range vectors[struct {
		Note, Manifest, Normalized, PDH string
		API                             bool   `json:"api_accepts"`
		NormalizedPDH                   string `json:"normalized_pdh"`
		TotalSize                       int64  `json:"total_size"`
		Tree                            []treeEntry
	}](t, "manifests") {
		t.Run(v.Note, func(t *testing.T) {
			c, err := keep.NewCollection(v.Manifest, nil)
			if v.Note == notStrict {
				if err == nil {
					t.Fatal("accepted")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := keep.CheckAPIManifest(v.Manifest); (err == nil) != v.API {
				t.Errorf("CheckAPIManifest: %v", err)
			}
			if c.Size() != v.TotalSize {
				t.Errorf("size %d, want %d", c.Size(), v.TotalSize)
			}
			if got := keep.PortableDataHash(v.Manifest); got != v.PDH {
				t.Errorf("PDH %s, want %s", got, v.PDH)
			}
			checkTree(t, c, v.Tree)
			got, err := c.MarshalManifest(t.Context())
			if err != nil || got != v.Normalized {
				t.Errorf("normalised %q, %v\nwant %q", got, err, v.Normalized)
			}
			if got := keep.PortableDataHash(got); got != v.NormalizedPDH {
				t.Errorf("normalised PDH %s, want %s", got, v.NormalizedPDH)
			}
			if again, err := keep.NormalizeManifest(got); err != nil || again != got {
				t.Errorf("normalised twice %q, %v", again, err)
			}
		})
	}
}

func checkTree(t *testing.T, c *keep.Collection, want []treeEntry) {
	t.Helper()
	var got []treeEntry
	err := c.Walk("", func(name string, info keep.FileInfo) error {
		if name == "." {
			return nil
		}
		e := treeEntry{Path: name, Dir: info.IsDir(), Size: info.Size()}
		if !e.Dir {
			f, err := c.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			for _, s := range f.Segments() {
				e.Segments = append(e.Segments, struct {
					Locator        string
					Offset, Length int64
				}{s.Locator.String(), s.Offset, s.Length})
			}
		}
		got = append(got, e)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	text := func(v any) string { b, _ := json.MarshalIndent(v, "", " "); return string(b) }
	if text(got) != text(want) {
		t.Errorf("tree %s\nwant %s", text(got), text(want))
	}
	for _, e := range want {
		info, err := c.Stat(e.Path)
		if err != nil || info.IsDir() != e.Dir || info.Size() != e.Size || info.Mode().Perm() != 0o755 {
			t.Errorf("Stat(%q) = %+v, %v", e.Path, info, err)
		}
	}
	if _, err := c.Stat("no such file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of a missing file: %v", err)
	}
}

func TestManifestRejectedVectors(t *testing.T) {
	for _, v := range vectors[struct {
		Note, Manifest string
		API            bool `json:"api_accepts"`
	}](t, "manifests_rejected") {
		if _, err := keep.NewCollection(v.Manifest, nil); !errors.Is(err, keep.ErrInvalidManifest) {
			t.Errorf("%s: %v", v.Note, err)
		}
	}
}
