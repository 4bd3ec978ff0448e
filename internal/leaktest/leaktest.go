// Package leaktest fails the tests of a package that leave goroutines behind.
package leaktest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs the tests and ends the program, with 1 if they have succeeded and have
// left goroutines, other than the one that starts children for as long as the
// process lives.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := find(time.Minute); err != nil {
			fmt.Fprintf(os.Stderr, "left behind by the tests: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// find returns an error if there are goroutines that do not end within patience:
// servers that have been closed still end their connections, which goleak itself
// gives half a second. That is not enough where many want the processors.
func find(patience time.Duration) error {
	for began := time.Now(); ; {
		err := goleak.Find(goleak.IgnoreAnyFunction("crunch-oci/internal/forkthread.serve"))
		if err == nil || time.Since(began) > patience {
			return err
		}
	}
}
