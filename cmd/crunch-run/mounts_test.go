package main_test

import (
	"maps"
	"strings"
	"testing"

	"crunch-oci/arvados"
)

func TestStandardStreams(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	input := c.store(t, map[string][]byte{"deep/in put.txt": []byte("line 1\nline 2\x00\xff")})
	out := attrs{"kind": "tmp", "capacity": 1 << 20}
	tests := map[string]struct {
		mounts         attrs
		stdout, stderr string // in the output, "" in the log
		wantOut        string
	}{
		"files and a collection": {
			attrs{
				"/out":   out,
				"stdin":  attrs{"kind": "collection", "portable_data_hash": input, "path": "deep/in put.txt"},
				"stdout": attrs{"kind": "file", "path": "/out/logs/std.out"},
				"stderr": attrs{"kind": "file", "path": "/out/std.err"},
			}, "logs/std.out", "std.err", "line 1\nline 2\x00\xff",
		},
		"json": {
			attrs{"/out": out, "stdin": attrs{"kind": "json", "content": attrs{"b": []any{1, nil}, "a": "<&>"}}},
			"", "", `{"a":"\u003c\u0026\u003e","b":[1,null]}`,
		},
		"nothing": {attrs{"/out": out}, "", "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			record := c.runOne(t, n, image, sh("cat; echo; echo done >&2"), attrs{"mounts": tt.mounts})
			stdout, stderr := "", ""
			if tt.stdout != "" {
				stdout, stderr = c.file(t, record.Output, tt.stdout), c.file(t, record.Output, tt.stderr)
				if logs := c.logs(t, record); logs["stdout.txt"] != "" || logs["stderr.txt"] != "" {
					t.Errorf("the log has %q, %q too", logs["stdout.txt"], logs["stderr.txt"])
				}
			} else {
				stdout, stderr = stamped(t, c.log(t, record, "stdout.txt")), stamped(t, c.log(t, record, "stderr.txt"))
			}
			if stdout != tt.wantOut+"\n" || stderr != "done\n" {
				t.Errorf("stdout %q, stderr %q", stdout, stderr)
			}
		})
	}
}

func TestMounts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	pdh := c.store(t, map[string][]byte{"a.txt": []byte("A"), "sub/b c.txt": []byte("B"), "sub/deep/d.txt": []byte("D")})
	request := c.request(t, image, sh(`
		cat /in/a.txt /one.txt /cfg.json /text.txt /secret.txt
		ls /scratch | wc -l; touch /scratch/x || exit 1
		! touch /in/new && ! touch /cfg.json || exit 2
		cat /out/sub/"b c.txt"
		cp /secret.txt /out/copied-by-intent
		echo changed >> /out/staged.txt; mkdir /out/empty; ln -s /in/sub /out/link; mkfifo /out/fifo
	`), attrs{
		"mounts": attrs{
			"/out":            attrs{"kind": "tmp", "capacity": 1 << 20},
			"/scratch":        attrs{"kind": "tmp", "capacity": 1 << 20},
			"/in":             attrs{"kind": "collection", "portable_data_hash": pdh},
			"/one.txt":        attrs{"kind": "collection", "portable_data_hash": pdh, "path": "/sub/b c.txt"},
			"/out/sub":        attrs{"kind": "collection", "portable_data_hash": pdh, "path": "sub"},
			"/cfg.json":       attrs{"kind": "json", "content": attrs{"n": 5}},
			"/text.txt":       attrs{"kind": "text", "content": "some text\n"},
			"/out/staged.txt": attrs{"kind": "text", "content": "staged\n"},
		},
		"secret_mounts": attrs{
			"/secret.txt":     attrs{"kind": "text", "content": "s3cr3t-w0rd\n"},
			"/out/secret.txt": attrs{"kind": "text", "content": "s3cr3t-w0rd\n"},
		},
	})
	c.lock(t, request.ContainerUUID)
	p := c.supervise(t, n, request.ContainerUUID)
	record := c.finished(t, n, p, request.ContainerUUID, 0, arvados.StateComplete)
	if record.ExitCode == nil || *record.ExitCode != 0 {
		t.Fatalf("exit code %v: %s", record.ExitCode, c.log(t, record, "stderr.txt"))
	}
	// The three files without a line end share a line.
	want := "AB{\"n\":5}some text\ns3cr3t-w0rd\n0\nB"
	if got := stamped(t, c.log(t, record, "stdout.txt")); got != want {
		t.Errorf("the container saw %q, want %q", got, want)
	}
	wantOut := map[string]string{
		"sub/b c.txt": "B", "sub/deep/d.txt": "D", "link/b c.txt": "B", "link/deep/d.txt": "D",
		"staged.txt": "staged\nchanged\n", "empty/.keep": "", "copied-by-intent": "s3cr3t-w0rd\n",
	}
	if got := c.files(t, record.Output); !maps.Equal(got, wantOut) {
		t.Errorf("output %q, want %q", got, wantOut)
	}
	log := stamped(t, c.log(t, record, "crunch-run.txt"))
	mustSayInOrder(t, log, "Running [arv-mount --foreground", "Skipping unsupported file type (mode 200000644) in output dir: \"/out/fifo\"")
	for name, text := range c.logs(t, record) {
		if name != "stdout.txt" && strings.Contains(text, "s3cr3t-w0rd") {
			t.Errorf("%s shows the content of a secret mount", name)
		}
	}
}

// A mount that cannot be made is final: another node could do no better.
func TestBadMounts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	pdh := c.store(t, map[string][]byte{"a.txt": []byte("A")})
	out := attrs{"kind": "tmp", "capacity": 1 << 20}
	for name, tt := range map[string]struct {
		mounts attrs
		want   string
	}{
		"missing input": {
			attrs{"/out": out, "/in": attrs{"kind": "collection", "portable_data_hash": pdh, "path": "no/such"}},
			"While setting up mounts: while checking that input files exist: stat ",
		},
		"lost collection": {
			attrs{"/out": out, "/in": attrs{"kind": "collection", "portable_data_hash": "00000000000000000000000000000000+99"}},
			"While setting up mounts: while checking that input files exist: stat ",
		},
		"tmp in the output": {
			attrs{"/out": out, "/out/foo": out},
			`only mount points of kind 'collection', 'text' or 'json' are supported underneath the output_path for "/out/foo", was "tmp"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			uuid := c.submit(t, image, sh("echo never"), attrs{"mounts": tt.mounts})
			record := c.finished(t, n, c.supervise(t, n, uuid), uuid, 1, arvados.StateCancelled)
			if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, tt.want) {
				t.Errorf("the log lacks %q:\n%s", tt.want, log)
			}
		})
	}
}

func TestOutputGlob(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	script := "mkdir -p a/b tmp; for f in a/1.txt a/b/2.txt a/b/2.bin tmp/x top.txt; do echo $f > $f; done"
	record := c.runOne(t, n, c.storeTools(t), sh(script), attrs{"output_glob": []string{"**/*.txt", "tmp"}})
	want := map[string]string{"a/1.txt": "a/1.txt\n", "a/b/2.txt": "a/b/2.txt\n", "top.txt": "top.txt\n"}
	if got := c.files(t, record.Output); !maps.Equal(got, want) {
		t.Errorf("output %q, want %q", got, want)
	}
}
