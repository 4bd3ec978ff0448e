package oci

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"unicode"
)

// account looks up an account in the files that the container's processes see now.
// One look-up is made at a time. The files may lie on a file system that does not
// answer: account then returns with ctx, and the look-up goes on in the background.
func (r *runningContainer) account(ctx context.Context, user string) (identity, error) {
	if user == "" {
		user = "root"
	}
	select {
	case r.accounts <- struct{}{}:
	case <-ctx.Done():
		return identity{}, context.Cause(ctx)
	}
	type answer struct {
		who identity
		err error
	}
	found := make(chan answer, 1)
	go func() {
		defer func() { <-r.accounts }()
		who, err := r.lookUp(user)
		found <- answer{who, err}
	}()
	select {
	case a := <-found:
		return a.who, a.err
	case <-ctx.Done():
		return identity{}, context.Cause(ctx)
	}
}

func (r *runningContainer) lookUp(user string) (identity, error) {
	root := fmt.Sprintf("/proc/%d/root", r.pid)
	passwd, err := readInRoot(root, "/etc/passwd")
	var group string
	if err == nil {
		group, err = readInRoot(root, "/etc/group")
	}
	if r.ending() {
		return identity{}, errEnded // the process's root may have been another's by now
	}
	if err != nil {
		// What is wrong with root's files must not lock root out.
		if user != "root" && user != "0" || !errors.Is(err, ErrRequest) {
			return identity{}, accountError(user, err)
		}
		passwd, group = "", ""
	}
	who, err := resolveUser(user, passwd, group)
	if name, rest, _ := strings.Cut(user, ":"); err != nil && name == "root" {
		if _, found := findAccount(passwd, name); !found {
			user = "0"
			if rest != "" {
				user += ":" + rest
			}
			who, err = resolveUser(user, passwd, group)
		}
	}
	if err != nil {
		return identity{}, accountError(user, err)
	}
	return who, nil
}

// accountError words an error as Docker does.
func accountError(user string, err error) error {
	var unknown *unknownAccountError
	switch {
	case errors.As(err, &unknown) && unknown.group:
		return &ExecError{1, "unable to find group " + printable(unknown.name) + ": no matching entries in group file"}
	case errors.As(err, &unknown):
		return &ExecError{1, "unable to find user " + printable(unknown.name) + ": no matching entries in passwd file"}
	case errors.Is(err, ErrRequest):
		return &ExecError{1, "unable to find user " + printable(user) + ": " + err.Error()}
	}
	return fmt.Errorf("look up account %q in the container: %w", user, err)
}

// printable returns foreign text as it is if it is safe to print, else quoted.
func printable(s string) string {
	const longest = 256
	if len(s) > longest {
		s = s[:longest] + "..."
	}
	if s == "" || strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return strconv.Quote(s)
	}
	return s
}

// loginShell returns an account's shell if it is one that lets people in.
func loginShell(shell string) string {
	switch path.Base(shell) {
	case "nologin", "false", "true", "sync", "halt", "shutdown":
		return ""
	}
	if !path.IsAbs(shell) {
		return ""
	}
	return shell
}
