package arvados

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

var (
	errTooLarge = errors.New("answer is too large")
	// errBroken is an answer that ended early or was damaged on its way, and
	// may be whole next time.
	errBroken = errors.New("answer is not complete JSON")
)

// decodeAnswer reads a whole answer, which must be one JSON object, into dst.
// Manifests make answers large, so the text is decoded as it comes and not
// held twice. What is not JSON is errBroken; JSON of another shape is another
// error.
func decodeAnswer(r io.Reader, dst any) error {
	buffered := bufio.NewReader(r)
	first, err := firstByte(buffered)
	if err != nil {
		return fmt.Errorf("%w: empty", errBroken)
	}
	dec := json.NewDecoder(buffered)
	dec.UseNumber()
	if err := dec.Decode(dst); isSyntax(err) {
		return errBroken
	} else if err != nil {
		return fmt.Errorf("unexpected answer: %w", err)
	}
	if first != '{' {
		return errors.New("unexpected answer: not a JSON object")
	}
	if err := dec.Decode(new(json.RawMessage)); err != io.EOF {
		return fmt.Errorf("%w: more follows", errBroken)
	}
	return nil
}

// firstByte returns the first byte that is not a blank, without consuming it.
func firstByte(r *bufio.Reader) (byte, error) {
	for {
		c, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return c, r.UnreadByte()
		}
	}
}

func isSyntax(err error) bool {
	var syntax *json.SyntaxError
	return errors.As(err, &syntax) || err == io.EOF || err == io.ErrUnexpectedEOF
}

// decode is json.Unmarshal that keeps the digits of numbers in an any.
func decode(data []byte, dst any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return dec.Decode(dst)
}

// boundedReader reads at most left bytes and remembers why it stopped before
// the end.
type boundedReader struct {
	r    io.Reader
	left int64
	err  error
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	// One byte more than allowed tells "too large" from "just fits".
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		err = errTooLarge
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}
