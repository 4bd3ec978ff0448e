package keep

import (
	"fmt"
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
