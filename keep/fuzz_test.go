package keep_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"crunch-oci/keep"
)

func FuzzLocator(f *testing.F) {
	for _, v := range vectors[struct{ Locator string }](f, "locators") {
		f.Add(v.Locator)
	}
	for _, v := range vectors[struct{ Locator string }](f, "verify") {
		f.Add(v.Locator)
	}
	f.Fuzz(func(t *testing.T, s string) {
		signer.VerifySignature(s, "token", time.Unix(0, 0))
		keep.ClientLocatorSize(s)
		path, pathErr := keep.ParsePathLocator(s)
		loc, err := keep.ParseLocator(s)
		if err != nil {
			if !loc.IsZero() {
				t.Fatal("a locator beside an error")
			}
			return
		}
		if loc.String() != s || !keep.IsAPILocator(s) || len(loc.Hash()) != 32 || loc.Size() < 0 {
			t.Fatalf("%q: hash %q, size %d", s, loc.Hash(), loc.Size())
		}
		if strings.ToLower(s[:32]) == s[:32] && (pathErr != nil || path.Hash != loc.Hash() || path.Size != loc.Size()) {
			t.Fatalf("%q: as a path %+v, %v", s, path, pathErr)
		}
		bare := loc.WithoutHints()
		if again, err := keep.ParseLocator(bare.String()); err != nil || again != bare || again.Size() != loc.Size() || bare.Hints() != nil {
			t.Fatalf("%q without hints is %q", s, bare)
		}
		if s != bare.String()+strings.Join(append([]string{""}, loc.Hints()...), "+") {
			t.Fatalf("hints of %q: %q", s, loc.Hints())
		}
		unsigned := loc.WithoutSignature()
		if _, err := keep.ParseLocator(unsigned.String()); err != nil {
			t.Fatalf("%q without signature: %v", s, err)
		}
		now := time.Now()
		signed := signer.SignLocator(unsigned.String(), "token", now)
		if err := signer.VerifySignature(signed, "token", now); err != nil {
			t.Fatalf("own signature of %q: %v", unsigned, err)
		}
		l, err := keep.ParseLocator(signed)
		if expiry, ok := l.SignedUntil(); err != nil || !ok && len(l.Hints()) == 1 || ok && expiry.Unix() > 1<<32 {
			t.Fatalf("%q: %v, %v, %v", signed, expiry, ok, err)
		}
	})
}

// describe lists all names with their sizes and segments.
func describe(t *testing.T, c *keep.Collection) (list []string) {
	err := c.Walk("", func(name string, info keep.FileInfo) error {
		if info.IsDir() {
			list = append(list, name+"/")
			return nil
		}
		file, err := c.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		// Neighbouring segments of one block may be merged or not.
		var segs []keep.Segment
		for _, s := range file.Segments() {
			if n := len(segs); n > 0 && segs[n-1].Locator == s.Locator && segs[n-1].Offset+segs[n-1].Length == s.Offset {
				segs[n-1].Length += s.Length
			} else {
				segs = append(segs, s)
			}
		}
		list = append(list, fmt.Sprint(name, info.Size(), segs))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func FuzzManifest(f *testing.F) {
	for _, key := range []string{"manifests", "manifests_rejected", "packing", "pdh"} {
		for _, v := range vectors[struct{ Manifest string }](f, key) {
			f.Add(v.Manifest)
		}
	}
	f.Add(sample)
	f.Add(". aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa+3 0:3:\\377 0:1:\\376/\\001\n")
	f.Fuzz(func(t *testing.T, text string) {
		keep.CheckAPIManifest(text)
		keep.PortableDataHash(text)
		keep.StripSignatures(text)
		c, err := keep.NewCollection(text, nil)
		if err != nil {
			return
		}
		normal, err := c.MarshalManifest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if other, err := keep.NormalizeManifest(text); err != nil || other != normal {
			t.Fatalf("NormalizeManifest: %q, %v, want %q", other, err, normal)
		}
		if err := keep.CheckAPIManifest(normal); err != nil {
			t.Fatalf("own manifest: %v", err)
		}
		again, err := keep.NewCollection(normal, nil)
		if err != nil {
			t.Fatalf("%q normalised is %q: %v", text, normal, err)
		}
		if before, after := describe(t, c), describe(t, again); !slices.Equal(before, after) {
			t.Fatalf("%q normalised is %q\n%q\n%q", text, normal, before, after)
		}
		if twice, err := again.MarshalManifest(t.Context()); err != nil || twice != normal {
			t.Fatalf("normalised twice: %q, %v, want %q", twice, err, normal)
		}
	})
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "a b", "\\", "\\\\040", "\xff", "é:\n", "\\400"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		escaped := keep.EscapeName(s)
		if got := keep.UnescapeName(escaped); got != s {
			t.Fatalf("%q escaped is %q, back %q", s, escaped, got)
		}
		if strings.ContainsAny(escaped, " :\n\t\x00") {
			t.Fatalf("%q escaped is %q", s, escaped)
		}
		keep.UnescapeName(s)
	})
}
