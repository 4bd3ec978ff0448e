package keep

import "unicode/utf8"

// Replacements says what leads from the manifest from to the manifest to, in the
// terms of the API's replace_files parameter: by absolute path, "" for what is
// removed, and else where it is in to, as manifest_text/PATH. A server that makes
// just these changes keeps what others have saved meanwhile
// (doc.arvados.org, API methods of collections, replace_files).
//
// ok is false if that cannot be said: a name is no UTF-8, which JSON would alter,
// or the files are the same and only their layout in blocks differs. Errors wrap
// ErrInvalidManifest.
func Replacements(from, to string) (paths map[string]string, ok bool, err error) {
	old, now := newDir("."), newDir(".")
	if err := parseManifest(old, from); err != nil {
		return nil, false, err
	}
	if err := parseManifest(now, to); err != nil {
		return nil, false, err
	}
	r := replacer{merger{c: new(Collection)}, make(map[string]string), true}
	r.dir(old, now, "")
	return r.paths, r.ok && len(r.paths) > 0, nil
}

type replacer struct {
	merger
	paths map[string]string
	ok    bool
}

func (r *replacer) dir(old, now *node, path string) {
	for _, e := range old.list() {
		if now.child(e.name) == nil {
			r.set(path+"/"+e.name, "")
		}
	}
	for _, e := range now.list() {
		name, was := path+"/"+e.name, old.child(e.name)
		switch {
		case isDir(was) && isDir(e):
			r.dir(was, e, name)
		case !isFile(was) || !isFile(e) || !r.same(was, e):
			r.set(name, "manifest_text"+name)
		}
	}
}

func (r *replacer) set(path, source string) {
	r.ok = r.ok && utf8.ValidString(path)
	r.paths[path] = source
}
