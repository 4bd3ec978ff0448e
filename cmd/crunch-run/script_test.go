package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/script/*.txtar: sessions at a shell, which are
// examples of how the program is used, too. Each has a node of its own, and in
// it crunch-run on the PATH, and images as $BUSYBOX (Debian's busybox, as
// "docker save" writes it) and $TOOLS (with testdata/probe as well).
func TestScripts(t *testing.T) {
	t.Parallel()
	busybox := busyboxImage(t)
	tools := filepath.Join(t.TempDir(), "tools.tar")
	if err := os.WriteFile(tools, toolsImage(t).dockerSave(), 0o644); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			n, err := makeNode(env.WorkDir + "/.node")
			if err != nil {
				return err
			}
			env.Defer(func() {
				left, err := n.leftovers()
				if err != nil || len(left) > 0 {
					env.T().Fatal("left behind on the node: ", left, err)
				}
			})
			env.Vars = append(env.Vars, n.settings()...)
			env.Setenv("PATH", filepath.Dir(program)+":"+os.Getenv("PATH"))
			env.Setenv("STATE", n.results())
			env.Setenv("BUSYBOX", busybox)
			env.Setenv("TOOLS", tools)
			env.Setenv("VERSION", testVersion)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// status CODE PROGRAM [ARG...]: runs it and expects this exit status.
			"status": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: status CODE PROGRAM [ARG...]")
				}
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				err = ts.Exec(args[1], args[2:]...)
				code := 0
				if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
					code = exit.ExitCode()
				} else {
					ts.Check(err)
				}
				if code != want {
					ts.Fatalf("exit status %d, want %d", code, want)
				}
			},
		},
	})
}
