// Package commandline is what the sub-commands' command lines have in common.
package commandline

import (
	"flag"
	"fmt"
	"strings"
)

// UsageError is a mistake in the command line.
type UsageError struct{ error }

// Unwrap returns what is wrong.
func (e UsageError) Unwrap() error { return e.error }

// Misuse makes a UsageError.
func Misuse(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Parse takes flags also after other arguments, up to "--", and returns the other
// arguments. Its error is a UsageError, or flag.ErrHelp. The flag set must be one
// that returns its errors.
func Parse(fs *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := fs.Parse(args); err == flag.ErrHelp {
			return nil, err
		} else if err != nil {
			return nil, UsageError{err}
		}
		left := fs.Args()
		if len(left) == 0 {
			return rest, nil
		}
		if n := len(args) - len(left); n > 0 && args[n-1] == "--" && (n == 1 || !wantsValue(fs, args[n-2])) {
			return append(rest, left...), nil
		}
		rest, args = append(rest, left[0]), left[1:]
	}
}

// wantsValue tells whether arg is a flag whose value is the next argument.
func wantsValue(fs *flag.FlagSet, arg string) bool {
	name := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
	f := fs.Lookup(name)
	if f == nil || name == arg {
		return false
	}
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return !ok || !b.IsBoolFlag()
}
