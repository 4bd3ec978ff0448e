package arvados

import (
	"testing"

	"crunch-oci/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }
