package main_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// startMount mounts the cluster's collections in a new directory.
func (c *cluster) startMount(t *testing.T, n *node, env []string, args ...string) (dir string, p *process) {
	t.Helper()
	dir = t.TempDir()
	p = n.start(t, run{
		args: append(append([]string{"keep-mount", "--foreground", "--mount-by-id", "by_id"}, args...), dir),
		env: append([]string{"ARVADOS_API_HOST=" + c.env["ARVADOS_API_HOST"], "ARVADOS_API_TOKEN=" + c.env["ARVADOS_API_TOKEN"],
			"SSL_CERT_FILE=" + c.env["SSL_CERT_FILE"]}, env...),
	})
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	waitFor(t, "the mount", func() bool {
		_, err := os.Stat(filepath.Join(dir, "by_id", "README"))
		return err == nil
	})
	return dir, p
}

// The UUID of a project is a directory of what it contains, by name: what changes
// there appears when --refresh-time has passed.
func TestKeepMountProjects(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	create := func(resource string, attrs attrs) string {
		t.Helper()
		var r struct{ UUID string }
		if err := c.user.Call(t.Context(), "POST", resource+"s", map[string]any{resource: attrs}, &r); err != nil {
			t.Fatal(err)
		}
		return r.UUID
	}
	stored, err := c.user.GetCollection(t.Context(), c.store(t, map[string][]byte{"f": []byte("f\n")}))
	if err != nil {
		t.Fatal(err)
	}
	project := create("group", attrs{"name": "p", "group_class": "project"})
	inner := create("group", attrs{"name": "inner", "group_class": "project", "owner_uuid": project})
	role := create("group", attrs{"name": "team", "group_class": "role"})
	collection := func(owner, name string) string {
		return create("collection", attrs{"name": name, "owner_uuid": owner, "manifest_text": stored.ManifestText})
	}
	same := collection(project, "inner")
	collection(project, "é b")
	collection(inner, "deep")
	create("group", attrs{"name": "view", "group_class": "filter", "owner_uuid": project,
		"properties": attrs{"filters": [][]any{{"collections.name", "=", "deep"}}}})
	circle := attrs{"filters": [][]any{{"groups.name", "in", []string{"all", "every", "inner"}}}}
	all := create("group", attrs{"name": "all", "group_class": "filter", "properties": circle})
	create("group", attrs{"name": "every", "group_class": "filter", "properties": circle})

	dir, p := c.startMount(t, n, nil, "--read-write", "--refresh-time", "0")
	top := filepath.Join(dir, "by_id", project)
	names := func() (list []string) {
		t.Helper()
		entries, err := os.ReadDir(top)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return list
	}
	if got, want := names(), []string{"inner", "inner (" + same + ")", "view", "é b"}; !slices.Equal(got, want) {
		t.Errorf("project has %q, want %q", got, want)
	}
	for _, name := range []string{"inner/deep/f", "inner (" + same + ")/f", "view/deep/f", "é b/f"} {
		if text, err := os.ReadFile(filepath.Join(top, name)); string(text) != "f\n" {
			t.Errorf("%s: %q %v", name, text, err)
		}
	}
	// Filter groups that contain themselves and each other have an end.
	var walked []string
	if err := filepath.WalkDir(filepath.Join(dir, "by_id", all), func(name string, d os.DirEntry, err error) error {
		if walked = append(walked, d.Name()); len(walked) > 100 {
			return filepath.SkipAll
		}
		return err
	}); err != nil || !slices.Equal(walked, []string{all, "every", "inner", "deep", "f", "inner", "deep", "f"}) {
		t.Errorf("%q %v", walked, err)
	}
	if info, err := os.Stat(top); err != nil || info.Mode() != os.ModeDir|0o555 {
		t.Errorf("project: %v %v", info.Mode(), err)
	}
	// What is in a project cannot be changed here, but the collections can.
	for what, err := range map[string]error{
		"mkdir":  os.Mkdir(filepath.Join(top, "new"), 0o777),
		"create": os.WriteFile(filepath.Join(top, "new"), nil, 0o666),
		"remove": syscall.Rmdir(filepath.Join(top, "é b")),
		"rename": syscall.Rename(filepath.Join(top, "é b"), filepath.Join(top, "c")),
	} {
		if err == nil || !strings.Contains(err.Error(), syscall.EPERM.Error()) {
			t.Errorf("%s in a project: %v", what, err)
		}
	}
	writeFile(t, filepath.Join(top, "inner/deep/g"), []byte("g\n"))
	if text, err := os.ReadFile(filepath.Join(top, "view/deep/g")); string(text) != "g\n" {
		t.Errorf("the same collection in another place: %q %v", text, err)
	}

	collection(project, "later")
	if err := c.user.Call(t.Context(), "DELETE", "collections/"+same, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := names(), []string{"inner", "later", "view", "é b"}; !slices.Equal(got, want) {
		t.Errorf("later: project has %q, want %q", got, want)
	}
	if _, err := os.Stat(filepath.Join(top, "later/f")); err != nil {
		t.Error(err)
	}
	if err := c.user.Call(t.Context(), "DELETE", "groups/"+project, nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, absent := range []string{filepath.Join(top, "later"), filepath.Join(dir, "by_id", role)} {
		if _, err := os.Stat(absent); !os.IsNotExist(err) {
			t.Errorf("%s: %v", absent, err)
		}
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("the mount ended with %d", code)
	}
}

// New blocks are stored in the cluster's default storage classes where the
// command line names none.
func TestKeepMountDefaultClasses(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	target, err := url.Parse(c.keepURL)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked []string
	proxy := httputil.NewSingleHostReverseProxy(target)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			mu.Lock()
			asked = append(asked, r.Header.Get("X-Keep-Storage-Classes"))
			mu.Unlock()
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	dir, _ := c.startMount(t, n, []string{"ARVADOS_KEEP_SERVICES=" + srv.URL}, "--read-write", "--mount-tmp", "new")
	writeFile(t, filepath.Join(dir, "new/f"), []byte("f\n"))
	if _, err := os.ReadFile(filepath.Join(dir, "new/.arvados#collection")); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(asked, []string{"default"}) {
		t.Errorf("blocks written by storage classes asked for: %q", asked)
	}
}
