// Package manifests is what an API server does with manifest texts: check
// them, hash them, count their files, and merge log collections. It accepts
// what the API server accepts (keep.md section 3), which is not quite what a
// client can read.
package manifests

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"hash"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"crunch-oci/keep"
)

// Info is what Check finds out about a manifest.
type Info struct {
	PDH       string // portable data hash
	Blocks    int    // block tokens
	FileCount int64  // distinct names, without placeholders of directories
	FileSize  int64  // bytes of all file segments, at most the largest int64
}

// Check reads a manifest by the API server's rules. For each block token it
// calls block (unless nil), whose error it returns as it is. Other errors
// name the stream and what is wrong with it.
func Check(text string, block func(locator string) error) (Info, error) {
	if !utf8.ValidString(text) {
		return Info{}, fmt.Errorf("Manifest is not valid UTF-8")
	}
	if text != "" && text[len(text)-1] != '\n' {
		return Info{}, fmt.Errorf("Manifest invalid: final newline missing")
	}
	c := checker{sum: md5.New(), block: block, seen: map[[2]string]bool{}}
	for n := 1; text != ""; n++ {
		end := strings.IndexByte(text, '\n')
		if err := c.stream(text[:end], n); err != nil {
			return Info{}, err
		}
		text = text[end+1:]
	}
	c.info.PDH = hex.EncodeToString(c.sum.Sum(nil)) + "+" + strconv.FormatInt(c.length, 10)
	c.info.FileCount = int64(len(c.seen))
	return c.info, nil
}

type checker struct {
	info   Info
	sum    hash.Hash
	length int64
	block  func(string) error
	seen   map[[2]string]bool // stream and name of each file
}

func (c *checker) write(s string) {
	c.sum.Write([]byte(s))
	c.length += int64(len(s))
}

func (c *checker) stream(line string, n int) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("Manifest invalid for stream %d: %s", n, fmt.Sprintf(format, a...))
	}
	name, rest, _ := strings.Cut(line, " ")
	if !validStream(name) {
		return bad("missing or invalid stream name %q", clip(name))
	}
	c.write(name)
	blocks, files := 0, 0
	for more := len(rest) > 0 || strings.HasSuffix(line, " "); more; {
		var token string
		token, rest, more = strings.Cut(rest, " ")
		switch {
		case files == 0 && keep.IsAPILocator(token):
			blocks++
			if c.block != nil {
				if err := c.block(token); err != nil {
					return err
				}
			}
			c.write(" " + withoutHints(token))
		case blocks == 0:
			return bad("missing or invalid locator %q", clip(token))
		default:
			length, file, ok := fileToken(token)
			if !ok {
				return bad("invalid file token %q", clip(token))
			}
			files++
			if file != "." && file != `\056` {
				c.seen[[2]string{name, file}] = true
			}
			if c.info.FileSize += length; c.info.FileSize < 0 {
				c.info.FileSize = math.MaxInt64
			}
			c.write(" " + token)
		}
	}
	if files == 0 {
		return bad("no file token")
	}
	c.info.Blocks += blocks
	c.write("\n")
	return nil
}

// withoutHints cuts a locator after its size.
func withoutHints(locator string) string {
	hash, hints, ok := strings.Cut(locator, "+")
	if !ok {
		return locator
	}
	size, _, _ := strings.Cut(hints, "+")
	if size == "" || size[0] < '0' || size[0] > '9' {
		return hash
	}
	return hash + "+" + size
}

// validStream tells whether s is "." or "./a/b" without empty, "." or ".."
// parts.
func validStream(s string) bool {
	if s == "." {
		return true
	}
	return strings.HasPrefix(s, "./") && validPath(s[2:])
}

// fileToken splits POSITION:LENGTH:NAME.
func fileToken(s string) (length int64, name string, ok bool) {
	pos, rest, ok1 := strings.Cut(s, ":")
	size, name, ok2 := strings.Cut(rest, ":")
	if !ok1 || !ok2 || !digits(pos) || !digits(size) {
		return 0, "", false
	}
	if name == "." || name == `\056` {
		return 0, name, strings.Trim(pos, "0") == "" && strings.Trim(size, "0") == ""
	}
	if !validPath(name) {
		return 0, "", false
	}
	length, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		length = math.MaxInt64
	}
	return length, name, true
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// validPath tells whether s is names separated by single slashes, none of them
// "." or "..", with white space and control characters escaped.
func validPath(s string) bool {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] <= ' ':
			return false
		case s[i] == '\\':
			if i+3 >= len(s) || s[i+1] < '0' || s[i+1] > '3' || !octal(s[i+2]) || !octal(s[i+3]) {
				return false
			}
		}
	}
	for _, part := range strings.Split(keep.UnescapeName(s), "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

func octal(c byte) bool { return c >= '0' && c <= '7' }

func clip(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "..."
	}
	return s
}
