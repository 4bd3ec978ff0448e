//go:build nonvml

package nvidia

import (
	"encoding/json"
	"io"

	"crunch-oci/gpu/host"
)

// Serve says that this program was built without NVML.
func Serve(_ io.Reader, out io.Writer, _ string, _ host.Host) error {
	return json.NewEncoder(out).Encode(message{
		Error: "this crunch-run is the statically linked one, which cannot load the NVIDIA driver's library", NoDriver: true,
	})
}
