package capture

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many links may follow one another, directories reached through
// links included; maxDirLinks how many of the directories on one link's way may
// be links themselves (the kernel's limit).
const (
	maxLinks    = 11
	maxDirLinks = 40
)

var errLinks = errors.New("too many symlinks, or symlink cycle")

// linkError is a symbolic link that cannot be output.
type linkError struct {
	path, target string
	err          error
}

func (e linkError) Error() string {
	return fmt.Sprintf("%v (symlink %q -> %q)", e.err, e.path, e.target)
}

func (e linkError) Unwrap() error { return e.err }

// fatalError ends the scan, even where it is reached through a link.
type fatalError struct{ error }

func (e fatalError) Unwrap() error { return e.error }

// addLink outputs what the link at p points to in the container. What is wrong
// with one link is noted, and the scan goes on to find all of them.
func (s *scan) addLink(ctx context.Context, p place) error {
	target, err := s.host.Readlink(s.table.host(p.path))
	if err != nil {
		return fmt.Errorf("readlink %q: %w", p.path, err)
	}
	to, err := s.resolve(p, target)
	if err == nil {
		err = s.add(ctx, to)
	}
	var fatal fatalError
	var inner linkError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &inner):
		return err
	case errors.As(err, &fatal):
		return linkError{p.path, target, err}
	}
	// The same link may be met again through a link to its directory.
	if !s.badLinks[p.path] {
		s.badLinks[p.path] = true
		s.problems = append(s.problems, linkError{p.path, target, err})
	}
	if len(s.problems) >= maxProblems {
		return s.linkErrors()
	}
	return nil
}

// resolve walks the target of the link at p as the kernel would in the
// container, and returns the place it leads to, with no links left in its path.
// Links are only known inside the output directory: collections have none, and
// nothing else can be output. A missing component is no obstacle here: whether
// the whole path exists is found out later.
func (s *scan) resolve(p place, target string) (place, error) {
	p.links++
	dirLinks := 0
	cur := path.Dir(p.path)
	todo := target
	for todo != "" {
		if p.links > maxLinks || dirLinks > maxDirLinks || len(todo) > maxTarget {
			return p, errLinks
		}
		if todo[0] == '/' {
			cur, todo = "/", strings.TrimLeft(todo, "/")
			continue
		}
		var name string
		name, todo, _ = strings.Cut(todo, "/")
		todo = strings.TrimLeft(todo, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			cur = path.Dir(cur)
			continue
		}
		next := path.Join(cur, name)
		link, ok, err := s.readlink(next)
		if err != nil {
			return p, err
		}
		if !ok {
			cur = next
			continue
		}
		if todo == "" {
			p.links++
			todo = link
		} else {
			dirLinks++
			todo = link + "/" + todo
		}
	}
	p.path = cur
	return p, nil
}

// maxTarget bounds what links in links expand to.
const maxTarget = 16 * unix.PathMax

// readlink returns the target of the container path p if it is a link.
func (s *scan) readlink(p string) (target string, ok bool, err error) {
	if !s.table.isLocal(p) || s.table.isMountPoint(p) {
		return "", false, nil
	}
	st, err := s.host.Lstat(s.table.host(p))
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false, nil
	}
	if target, err = s.host.Readlink(s.table.host(p)); err != nil {
		return "", false, fmt.Errorf("readlink %q: %w", p, err)
	}
	return target, true, nil
}

// maxProblems is how many bad links are looked for.
const maxProblems = 50

// linkErrors returns one error for all bad links. It begins with what is wrong
// with the first.
func (s *scan) linkErrors() error {
	if len(s.problems) == 0 {
		return nil
	}
	err := error(s.problems[0])
	if len(s.problems) > 1 {
		var more strings.Builder
		for _, p := range s.problems[1:] {
			fmt.Fprintf(&more, "\n%v", p)
		}
		err = fmt.Errorf("%w; all links with problems must be fixed, also:%s", err, more.String())
	}
	if len(s.problems) >= maxProblems {
		err = fmt.Errorf("%w\n(and perhaps more)", err)
	}
	return err
}
