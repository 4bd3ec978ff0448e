package localcluster

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"crunch-oci/keep"
)

// replace_files changes what it names and nothing else.
func TestReplaceFiles(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	f, g, h := p.user.put("f"), p.user.put("g"), p.user.put("h")
	theirs := str(bob.collection(nil, "secret", "s"), "portable_data_hash")
	mine := str(p.user.collection(nil, "m", "mine"), "portable_data_hash")
	sent := ". " + h + " 0:1:h\n./n/o " + h + " 0:1:h\n"
	for name, c := range map[string]struct {
		replace  any
		manifest string
		status   int
		want     string // names with contents
	}{
		"add":                        {obj{"/h": "manifest_text/h"}, sent, 200, "d/g=g f=f h=h"},
		"add with parents":           {obj{"/x/y/h": "manifest_text/h"}, sent, 200, "d/g=g f=f x/y/h=h"},
		"add a directory":            {obj{"/n": "manifest_text/n"}, sent, 200, "d/g=g f=f n/o/h=h"},
		"replace":                    {obj{"/f": "manifest_text/h"}, sent, 200, "d/g=g f=h"},
		"replace a directory":        {obj{"/d": "manifest_text/h"}, sent, 200, "d=h f=f"},
		"replace all":                {obj{"/": "manifest_text/n"}, sent, 200, "o/h=h"},
		"remove":                     {obj{"/f": ""}, "", 200, "d/g=g"},
		"remove a directory":         {obj{"/d": ""}, "", 200, "f=f"},
		"remove what is not there":   {obj{"/nosuch": ""}, "", 200, "d/g=g f=f"},
		"rename":                     {obj{"/f": "", "/e": "current/f"}, "", 200, "d/g=g e=f"},
		"swap":                       {obj{"/f": "current/d/g", "/d/g": "current/f"}, "", 200, "d/g=f f=g"},
		"remove all, add":            {obj{"/": "", "/d/f": "current/f"}, "", 200, "d/f=f"},
		"from another collection":    {obj{"/d/m": mine + "/m"}, "", 200, "d/g=g d/m=mine f=f"},
		"all of another collection":  {obj{"/d": mine + "/"}, "", 200, "d/m=mine f=f"},
		"none":                       {obj{}, "", 200, "d/g=g f=f"},
		"of another user":            {obj{"/m": theirs + "/secret"}, "", 404, ""},
		"source not there":           {obj{"/m": "current/nosuch"}, "", 422, ""},
		"unknown source":             {obj{"/m": "elsewhere/m"}, "", 422, ""},
		"below a replaced one":       {obj{"/d": "current/d", "/d/g": ""}, "", 422, ""},
		"below a file":               {obj{"/f/g": "current/f"}, "", 422, ""},
		"target not canonical":       {obj{"/d/../f": ""}, "", 422, ""},
		"target not absolute":        {obj{"f": ""}, "", 422, ""},
		"manifest_text not used":     {obj{"/f": ""}, sent, 422, ""},
		"manifest_text not signed":   {obj{"/h": "manifest_text/h"}, keep.StripSignatures(sent), 403, ""},
		"manifest_text not readable": {obj{"/h": "manifest_text/h"}, "x", 422, ""},
		"no object":                  {[]string{"/f"}, "", 422, ""},
		"no strings":                 {obj{"/f": 1}, "", 422, ""},
	} {
		t.Run(name, func(t *testing.T) {
			coll := p.user.must("POST", "collections", obj{"collection": obj{"manifest_text": ". " + f + " 0:1:f\n./d " + g + " 0:1:g\n"}})
			attrs := obj{}
			if c.manifest != "" {
				attrs["manifest_text"] = c.manifest
			}
			a := p.user.do("PUT", "collections/"+str(coll, "uuid"), obj{"collection": attrs, "replace_files": c.replace})
			if a.status != c.status {
				t.Fatalf("%d %s", a.status, a.body)
			}
			now := p.user.must("GET", "collections/"+str(coll, "uuid"), nil)
			if c.status != 200 {
				if now["portable_data_hash"] != coll["portable_data_hash"] {
					t.Error("changed all the same")
				}
				return
			}
			if a.obj["portable_data_hash"] != now["portable_data_hash"] || strings.Count(str(now, "manifest_text"), "+A") == 0 {
				t.Errorf("answer %s, record %s", a.body, now)
			}
			if got := p.user.contents(str(now, "manifest_text")); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	// A new collection begins with nothing.
	a := p.user.must("POST", "collections", obj{"collection": obj{"manifest_text": sent}, "replace_files": obj{"/x": "manifest_text/h", "/m": mine + "/m"}})
	if got := p.user.contents(str(a, "manifest_text")); got != "m=mine x=h" {
		t.Errorf("new: %q", got)
	}
}

// contents lists the files of a manifest with what is in them.
func (c *client) contents(manifest string) string {
	c.t.Helper()
	tree, err := keep.NewCollection(manifest, blocksOf{c})
	if err != nil {
		c.t.Fatal(err)
	}
	var list []string
	err = tree.Walk("", func(name string, info keep.FileInfo) error {
		if info.IsDir() {
			return nil
		}
		f, err := tree.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		text := make([]byte, info.Size())
		_, err = f.ReadAt(text, 0)
		list = append(list, name+"="+string(text))
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.Join(list, " ")
}

// blocksOf reads blocks with a client's token.
type blocksOf struct{ *client }

func (b blocksOf) ReadBlock(_ context.Context, loc keep.Locator) ([]byte, error) {
	a := b.send("GET", b.keep+"/"+loc.String(), nil, nil)
	if a.status != 200 {
		return nil, fmt.Errorf("%d %s", a.status, a.body)
	}
	return a.body, nil
}
