package client

import (
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"crunch-oci/arvados"
)

// What users read: the cluster's refusals without its internals, and the words of
// others without anything for a terminal to obey.

var (
	// A text that the front end passes on from the back end (spec: arvados-api
	// section 4).
	passedOn = regexp.MustCompile(`//railsapi\.internal\S*: \d{3} [A-Za-z' ]+: `)
	// A raised error of the back end.
	raised = regexp.MustCompile(`#<[A-Z][A-Za-z]*(?:::[A-Z][A-Za-z]*)*: (.*)>`)
	// What stands for no text at all.
	className = regexp.MustCompile(`^ArvadosModel::PermissionDeniedError`)
)

// explain is an error in words for somebody at a terminal.
func explain(err error) string {
	text := err.Error()
	var refused *arvados.Error
	if errors.As(err, &refused) && refused.Status >= 400 && refused.Status < 500 {
		words := strings.Join(refused.Texts, "; ")
		words = raised.ReplaceAllString(passedOn.ReplaceAllString(words, ""), "$1")
		words = className.ReplaceAllString(words, "permission denied")
		switch {
		case refused.Status == http.StatusUnauthorized:
			words = "the cluster does not accept the token in ARVADOS_API_TOKEN: " + words
		case refused.Status == http.StatusNotFound:
			words = strings.TrimPrefix(refused.Path, "/arvados/v1/") + " is not there, or not yours to read (" + refused.RequestID + ")"
		case words == "":
			words = strconv.Itoa(refused.Status) + " " + http.StatusText(refused.Status)
		}
		text = strings.Replace(text, refused.Error(), words, 1)
	}
	return plain(text)
}

// plain is text in which control characters are spelled out, but for the ends of
// lines.
func plain(s string) string {
	bad := func(r rune) bool { return unicode.IsControl(r) && r != '\n' }
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if bad(r) {
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// word is plain for what must stay on one line.
func word(s string) string { return plain(strings.ReplaceAll(s, "\n", `\n`)) }
