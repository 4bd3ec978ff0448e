package sshd

import "errors"

// The texts are those users of the reference know (gateway.md section 5.3).
var (
	errOpenQuote = errors.New("EOF found when expecting closing quote")
	errEscapeEnd = errors.New("EOF found after escape character")
)

// Split splits a command into words, without a shell: no variables, globs,
// operators or redirections. Words are separated by spaces, tabs, CR and LF;
// '...' is literal; "..." is, but for a backslash, which makes the next character
// literal and disappears, as it does outside of quotes; # at the start of a word
// begins a comment up to the end of the line. Adjacent parts are one word.
func Split(command string) ([]string, error) {
	var words []string
	var word []byte
	inWord := false // also an empty one, such as ""
	for i := 0; i < len(command); i++ {
		switch c := command[i]; c {
		case ' ', '\t', '\r', '\n':
			if inWord {
				words = append(words, string(word))
				word, inWord = word[:0], false
			}
		case '#':
			if inWord {
				word = append(word, c)
				continue
			}
			for i < len(command) && command[i] != '\n' {
				i++
			}
		case '\\':
			if i++; i == len(command) {
				return nil, errEscapeEnd
			}
			word, inWord = append(word, command[i]), true
		case '\'', '"':
			inWord = true
			for i++; ; i++ {
				if i == len(command) {
					return nil, errOpenQuote
				}
				if command[i] == c {
					break
				}
				if c == '"' && command[i] == '\\' {
					if i++; i == len(command) {
						return nil, errEscapeEnd
					}
				}
				word = append(word, command[i])
			}
		default:
			word, inWord = append(word, c), true
		}
	}
	if inWord {
		words = append(words, string(word))
	}
	return words, nil
}
