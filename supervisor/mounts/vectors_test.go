package mounts

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
)

// vector is one entry of "setup" in testdata/spec/mounts-and-output.json.
type vector struct {
	Name      string
	Container struct {
		Mounts               map[string]arvados.Mount `json:"mounts"`
		OutputPath           string                   `json:"output_path"`
		OutputStorageClasses []string                 `json:"output_storage_classes"`
		RuntimeConstraints   struct {
			API           bool
			KeepCacheDisk int64 `json:"keep_cache_disk"`
			KeepCacheRAM  int64 `json:"keep_cache_ram"`
		} `json:"runtime_constraints"`
	}
	SecretMounts map[string]arvados.Mount `json:"secret_mounts"`
	DockerEngine bool                     `json:"docker_engine"`
	SSLCertFile  bool                     `json:"ssl_cert_file_present"`
	Expect       expectation
	FuseContents []struct{ Op, Path, Content string } `json:"fuse_contents"`
	Better       any                                  `json:"better"`
}

type expectation struct {
	Error         string
	ArvMountArgs  []string   `json:"arv_mount_args"`
	Binds         []wantBind `json:"binds"`
	OutputHostDir string     `json:"output_host_dir"`
	Staged        []staged
}

type wantBind struct {
	Target   string `json:"target"`
	Source   string `json:"source"`
	ReadOnly bool   `json:"read_only"`
}

type staged struct{ Path, Mode, Type, Content string }

func (s staged) String() string {
	return fmt.Sprintf("%s %s %s %q", s.Path, s.Mode, s.Type, s.Content)
}

// changed lists every vector whose expectation is not that of the reference,
// with the reason.
var changed = map[string]struct {
	why  string
	edit func(*expectation)
}{
	"no output storage classes": {"keep.md section 12: never pass an empty --storage-classes", func(e *expectation) {
		e.ArvMountArgs = slices.Concat(e.ArvMountArgs[:3], e.ArvMountArgs[5:])
	}},
	"input by PDH with path /": {"sources are clean paths; by_id/<pdh>/ is the same directory", func(e *expectation) {
		e.Binds[0].Source = strings.TrimSuffix(e.Binds[0].Source, "/")
	}},
	"input by UUID ignores path": {"section 15: apply path to UUID mounts", func(e *expectation) {
		e.Binds[0].Source += "/sub"
	}},
	"trailing slash in output path": {"targets are clean paths; /out/ is the same directory", func(e *expectation) {
		e.Binds[0].Target = "/out"
	}},
	"mount key with trailing slash under output": {"section 15: reject two targets equal after cleaning", func(e *expectation) {
		*e = expectation{Error: `mount targets "/out" and "/out/" are the same place`}
	}},
	"writable single file below tmp output is copied": {"section 15: missing parents of staged files get mode 2777", parentMode},
	"json inside output is copied":                    {"section 15: missing parents of staged files get mode 2777", parentMode},
	"secret json loses integer precision": {"section 15: secret JSON keeps number precision", func(e *expectation) {
		e.Staged[1].Content = `{"n":123456789123456789}`
	}},
	"stdin of kind json": {"section 15: no bind for the target stdin, hence no file behind it", func(e *expectation) {
		e.Binds, e.Staged = e.Binds[:1], e.Staged[2:]
	}},
	"stdin of kind collection": {"lifecycle section 16: a missing stdin file is found while setting up mounts; the file is added to the vector's Keep", func(*expectation) {}},
}

func parentMode(e *expectation) {
	for i := range e.Staged {
		if e.Staged[i].Mode == "2755" {
			e.Staged[i].Mode = "2777"
		}
	}
}

func loadVectors(t testing.TB) []vector {
	t.Helper()
	text, err := os.ReadFile("../../testdata/spec/mounts-and-output.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct{ Setup []vector }
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all.Setup
}

func TestSetupVectors(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	names := make(map[string]bool)
	for _, v := range loadVectors(t) {
		names[v.Name] = true
		t.Run(v.Name, func(t *testing.T) {
			if c, ok := changed[v.Name]; ok {
				c.edit(&v.Expect)
			} else if v.Better != nil {
				t.Errorf("this vector is marked %q and must be in the list of changes", v.Better)
			}
			v.run(t)
		})
	}
	for name := range changed {
		if !names[name] {
			t.Errorf("change of unknown vector %q", name)
		}
	}
}

func (v vector) run(t *testing.T) {
	in := v.input(t)
	// The numbers are the reference's random digits.
	expand := strings.NewReplacer("$TMP", in.RunDir, "$KEEP", filepath.Join(in.RunDir, "keep1"), "$SSL_CERT_FILE", in.CABundle)
	inputs := v.inputs()
	plan, err := NewPlan(in)
	if err == nil && v.Expect.Error != "" {
		err = plan.CheckInputs(t.Context(), inputs)
	}
	if want := expand.Replace(v.Expect.Error); want != "" {
		if err == nil || err.Error() != want {
			t.Fatalf("error %q\n want %q", err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	var wantArgs []string
	for _, arg := range v.Expect.ArvMountArgs {
		wantArgs = append(wantArgs, expand.Replace(arg))
	}
	if got := append([]string{"arv-mount"}, plan.KeepMountArgs...); !slices.Equal(got, wantArgs) {
		t.Errorf("arguments %q\n     want %q", got, wantArgs)
	}
	var got, want []wantBind
	for _, b := range plan.Binds {
		got = append(got, wantBind{b.Target, b.Source, b.ReadOnly})
	}
	for _, b := range v.Expect.Binds {
		b.Source = expand.Replace(b.Source)
		want = append(want, b)
	}
	if !slices.Equal(got, want) {
		t.Errorf("binds %v\n want %v", got, want)
	}
	if want := expand.Replace(v.Expect.OutputHostDir); plan.OutputDir != want {
		t.Errorf("output directory %s, want %s", plan.OutputDir, want)
	}
	v.stage(t, plan, inputs, expand)
}

func (v vector) stage(t *testing.T, plan *Plan, inputs Inputs, expand *strings.Replacer) {
	if err := plan.Prepare(); err != nil {
		t.Fatal(err)
	}
	for i := range plan.NewCollections { // stands for the FUSE server
		if err := os.Mkdir(filepath.Join(plan.KeepDir, newCollectionName(i)), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := plan.CheckInputs(t.Context(), inputs); err != nil {
		t.Fatal(err)
	}
	if err := plan.StageOutput(t.Context(), inputs); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, s := range v.Expect.Staged {
		s.Path = expand.Replace(s.Path)
		want = append(want, s.String())
	}
	got := listing(t, plan.RunDir)
	if plan.OutputIsCollection {
		// The vectors do not say what is copied into the collection.
		for _, s := range plan.Staged {
			if _, err := os.Stat(filepath.Join(plan.OutputDir, s.Path)); err != nil {
				t.Error(err)
			}
		}
	}
	got = slices.DeleteFunc(got, func(s string) bool { return strings.Contains(s, plan.KeepDir) })
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func (v vector) input(t *testing.T) Input {
	in := Input{
		Mounts: v.Container.Mounts, SecretMounts: v.SecretMounts, OutputPath: v.Container.OutputPath,
		OutputStorageClasses: v.Container.OutputStorageClasses,
		KeepCacheDisk:        v.Container.RuntimeConstraints.KeepCacheDisk,
		KeepCacheRAM:         v.Container.RuntimeConstraints.KeepCacheRAM,
		RunDir:               t.TempDir(), AllowOther: v.DockerEngine, StatsInterval: 10 * time.Second,
	}
	if in.OutputStorageClasses == nil {
		in.OutputStorageClasses = []string{"default"} // the API server's default
	}
	if v.SSLCertFile && v.Container.RuntimeConstraints.API {
		in.CABundle = filepath.Join(t.TempDir(), "ca.crt")
	}
	return in
}

// listing describes every file below dir but dir and skip, as the vectors do.
func listing(t *testing.T, dir string, skip ...string) []string {
	t.Helper()
	list := []string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir || slices.Contains(skip, name) {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		s := staged{Path: name, Mode: fmt.Sprintf("%04o", st.Mode&0o7777), Type: "dir"}
		if d.Type().IsRegular() {
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			s.Type, s.Content = "file", string(content)
		}
		list = append(list, s.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// collections are the contents of Keep by portable data hash or UUID.
type collections map[string]fstest.MapFS

func (c collections) Collection(_ context.Context, id string) (fs.FS, error) {
	if fsys, ok := c[id]; ok {
		return fsys, nil
	}
	return nil, fmt.Errorf("collection %s: %w", id, fs.ErrNotExist)
}

func (v vector) inputs() collections {
	all := collections{}
	add := func(id, name string, f *fstest.MapFile) {
		if all[id] == nil {
			all[id] = fstest.MapFS{}
		}
		if name != "" {
			all[id][name] = f
		}
	}
	for _, f := range v.FuseContents {
		id, name, _ := strings.Cut(strings.TrimPrefix(f.Path, "by_id/"), "/")
		if f.Op == "dir" {
			add(id, name, &fstest.MapFile{Mode: fs.ModeDir | 0o755})
		} else {
			add(id, name, &fstest.MapFile{Data: []byte(f.Content), Mode: 0o644})
		}
	}
	switch v.Name {
	case "input by UUID ignores path":
		add("zzzzz-4zz18-0123456789abcde", "sub/f", &fstest.MapFile{})
	case "stdin of kind collection":
		// The reference finds out only when it creates the container.
		add("59389a8f9ee9d399be35462a0f92541c+53", "f", &fstest.MapFile{})
	}
	return all
}
