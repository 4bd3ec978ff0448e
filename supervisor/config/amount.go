package config

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// Amount is a size, either in bytes or as a share of something.
type Amount struct {
	// Bytes is the size if Percent is 0.
	Bytes int64
	// Percent is the share, 1 to 100.
	Percent int
}

// Of returns the amount in bytes, of a whole of total bytes.
func (a Amount) Of(total int64) int64 {
	if a.Percent == 0 {
		return a.Bytes
	}
	return int64(float64(total) * float64(a.Percent) / 100)
}

// String returns what parseAmount reads.
func (a Amount) String() string {
	if a.Percent != 0 {
		return strconv.Itoa(a.Percent) + "%"
	}
	for i := len(binaryUnits) - 1; i > 0; i-- {
		if unit := int64(1) << (10 * i); a.Bytes != 0 && a.Bytes%unit == 0 {
			return strconv.FormatInt(a.Bytes/unit, 10) + binaryUnits[i] + "iB"
		}
	}
	return strconv.FormatInt(a.Bytes, 10)
}

var binaryUnits = []string{"", "K", "M", "G", "T", "P", "E"}

func parseAmount(text string) (Amount, error) {
	if p, ok := strings.CutSuffix(text, "%"); ok {
		n, err := strconv.Atoi(strings.TrimSpace(p))
		if err != nil || n < 1 || n > 100 {
			return Amount{}, errors.New("a percentage must be a whole number from 1% to 100%")
		}
		return Amount{Percent: n}, nil
	}
	n, err := ParseSize(text)
	if err == nil && n <= 0 {
		err = errors.New("must be more than 0")
	}
	return Amount{Bytes: n}, err
}

var sizePattern = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?(?:([KMGTPE])(i?))?B?$`)

// ParseSize reads a number of bytes with the suffixes Arvados' configuration
// knows: K, M, G, T, P, E (with or without B) are powers of 1000, Ki, Mi, Gi,
// Ti, Pi, Ei powers of 1024.
func ParseSize(text string) (int64, error) {
	bad := fmt.Errorf("%q is not a size such as 2000000, 2MB or 2MiB", text)
	m := sizePattern.FindStringSubmatch(text)
	if m == nil {
		return 0, bad
	}
	factor := int64(1)
	if i := strings.Index("KMGTPE", m[2]); m[2] != "" {
		base := int64(1000)
		if m[3] != "" {
			base = 1024
		}
		for range i + 1 {
			factor *= base
		}
	}
	if n, err := strconv.ParseInt(m[1], 10, 64); err == nil {
		if n > math.MaxInt64/factor {
			return 0, fmt.Errorf("%q is too large", text)
		}
		return n * factor, nil
	}
	f, err := strconv.ParseFloat(m[1], 64)
	if err != nil || f*float64(factor) >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is too large", text)
	}
	return int64(f * float64(factor)), nil
}

// parseCount reads a number of things, or a percentage. The result's Bytes are
// things.
func parseCount(text string) (Amount, error) {
	if strings.HasSuffix(text, "%") {
		return parseAmount(text)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		return Amount{}, fmt.Errorf("%q is neither a whole number of more than 0 nor a percentage", text)
	}
	return Amount{Bytes: n}, nil
}
