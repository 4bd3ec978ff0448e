package keep

// What an API server and the reference client do, for tests to hold ours against.

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// CheckAPIManifest tells whether the API server would accept a manifest, which
// is another rule than a reader's: it looks at the form of names and locators
// closely, and not at all at whether segments lie in the stream or a file and a
// directory have the same name. Errors wrap ErrInvalidManifest.
func CheckAPIManifest(manifest string) error {
	if !utf8.ValidString(manifest) {
		return fmt.Errorf("%w: not UTF-8", ErrInvalidManifest)
	}
	for line := 1; manifest != ""; line++ {
		text, rest, ok := strings.Cut(manifest, "\n")
		if !ok {
			return fmt.Errorf("%w: line %d: no line feed at the end", ErrInvalidManifest, line)
		}
		if what := apiLineProblem(text); what != "" {
			return fmt.Errorf("%w: line %d: %s", ErrInvalidManifest, line, what)
		}
		manifest = rest
	}
	return nil
}

// apiLineProblem returns what is wrong with a stream, "" if nothing is.
func apiLineProblem(line string) string {
	tokens := strings.Split(line, " ")
	if name := tokens[0]; name != "." && (!strings.HasPrefix(name, "./") || !isAPIPath(name[2:])) {
		return fmt.Sprintf("invalid stream name %q", clip(name))
	}
	tokens = tokens[1:]
	locators := 0
	for locators < len(tokens) && IsAPILocator(tokens[locators]) {
		locators++
	}
	if locators == 0 {
		return "no block locator after the stream name"
	}
	if tokens = tokens[locators:]; len(tokens) == 0 {
		return "no file token"
	}
	for _, token := range tokens {
		if !isAPIFileToken(token) {
			return fmt.Sprintf("invalid file token %q", clip(token))
		}
	}
	return ""
}

func isAPIFileToken(token string) bool {
	pos, rest, _ := strings.Cut(token, ":")
	length, name, ok := strings.Cut(rest, ":")
	if !ok || !allDigits(pos) || !allDigits(length) {
		return false
	}
	if token == "0:0:." || token == `0:0:\056` {
		return true
	}
	return isAPIPath(name)
}

// isAPIPath checks an escaped path: no empty, "." or ".." part, no white space
// or control character, and only octal escapes.
func isAPIPath(path string) bool {
	for i := range len(path) {
		if path[i] <= ' ' {
			return false
		}
		if path[i] == '\\' {
			esc := path[i+1:]
			if len(esc) < 3 || esc[0] < '0' || esc[0] > '3' || !isOctal(esc[1]) || !isOctal(esc[2]) {
				return false
			}
		}
	}
	for _, part := range strings.Split(UnescapeName(path), "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// NormalizeManifest returns the form that MarshalManifest writes: the same
// tree, one line per directory, in a fixed order.
func NormalizeManifest(manifest string) (string, error) {
	root := newDir(".")
	if err := parseManifest(root, manifest); err != nil {
		return "", err
	}
	return render(new(Collection).freeze(nil, root, []byte("."))), nil
}

// ClientLocatorSize reads s as the reference Go client does, which is more
// liberal than ParseLocator: 32 lower-case digits, then nothing or "+" and
// anything but a line feed. size is -1 if the first hint is not an integer.
func ClientLocatorSize(s string) (size int64, ok bool) {
	rest, ok := cutHash(s, true)
	if !ok || strings.IndexByte(rest, '\n') >= 0 || rest != "" && rest[0] != '+' {
		return 0, false
	}
	if rest == "" {
		return -1, true
	}
	hint, _, _ := strings.Cut(rest[1:], "+")
	size, err := strconv.ParseInt(hint, 10, 64)
	if err != nil {
		return -1, true
	}
	return size, true
}

// ServiceUUID returns the UUID that a keepstore named in a cluster's
// configuration has for clients that read the configuration. rendezvous is the
// service's Rendezvous value, or its InternalURL with its trailing slash.
func ServiceUUID(clusterID, rendezvous string) string {
	return clusterID + "-bi6l4-" + rendezvousSuffix(rendezvous, 15)
}

// ListedServiceUUID returns the UUID of the same service in the API server's
// list, which is one character longer unless Rendezvous is set as it should be.
func ListedServiceUUID(clusterID, rendezvous string) string {
	return clusterID + "-bi6l4-" + rendezvousSuffix(rendezvous, 16)
}

func rendezvousSuffix(s string, digits int) string {
	if len(s) == 15 && isAlphanumeric(s) {
		return s
	}
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])[:digits]
}
