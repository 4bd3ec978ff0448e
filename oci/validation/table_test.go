package validation

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// row is a program's outcome with both runtimes.
type row struct {
	program    string
	ours, runc outcome
}

// same tells whether the program thinks the same of both.
func (r row) same() bool {
	return r.ours.ok == r.runc.ok && r.ours.skipped == r.runc.skipped && slices.Equal(r.ours.failed, r.runc.failed) &&
		(r.ours.trouble == "") == (r.runc.trouble == "")
}

type table []row

func (t table) write(w io.Writer) error {
	groups := []struct {
		title  string
		choose func(row) bool
	}{
		{"All is well with both", func(r row) bool { return r.ours.good() && r.runc.good() }},
		{"All is well with ours only", func(r row) bool { return r.ours.good() && r.runc.verdict() && !r.runc.good() }},
		{"All is well with runc only", func(r row) bool { return !r.ours.good() && r.runc.good() }},
		{"Something is not well with both", func(r row) bool { return !r.ours.good() && r.runc.verdict() && !r.runc.good() }},
		{"No verdict under runc", func(r row) bool { return !r.runc.verdict() }},
	}
	var b strings.Builder
	b.WriteString(head)
	for _, g := range groups {
		n := 0
		for _, r := range t {
			if g.choose(r) {
				n++
			}
		}
		fmt.Fprintf(&b, "| %s | %d |\n", g.title, n)
	}
	fmt.Fprintf(&b, "| programs | %d |\n", len(t))
	for _, g := range groups {
		var rows table
		for _, r := range t {
			if g.choose(r) {
				rows = append(rows, r)
			}
		}
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n| program | ours | runc | |\n|---|---|---|---|\n", g.title)
		slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.program, b.program) })
		for _, r := range rows {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.program, cell(r.ours.String()), cell(r.runc.String()), cell(explained[r.program]))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

const head = `# Validation

` + "`make validation`" + ` writes this page: the validation suite of the Open Containers Initiative
(runtime-tools v0.9.1-0.20251114084447-edf4cb3d2116) with package ` + "`oci`" + `, through a small command line around it, and with
runc of the version that our libcontainer has, program by program in the same run. Numbers are those of single statements. A program
that is not content is asked twice more, with either runtime, and its best answer counts: some of them wait for fixed times.

What the machine of this run lacked (control group controllers, SELinux, AppArmor, capabilities) is said in the table. With all capabilities, in
the virtual machine of ` + "`make test-vm`" + `, on pure cgroup v2, ` + "`process_capabilities` and `default`" + ` are content with both. The other controllers are
those of cgroup v1, which the suite knows only; no machine of ours has them. ` + "`make test`" + ` runs five of the programs.

| | programs |
|---|---|
`
