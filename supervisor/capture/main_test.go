package capture

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"crunch-oci/internal/leaktest"
)

func TestMain(m *testing.M) {
	if dir, url, ok := strings.Cut(os.Getenv(benchChild), " "); ok {
		if err := captureAlone(dir, url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leaktest.Main(m)
}
