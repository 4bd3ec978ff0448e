package wire

import "runtime/debug"

// engineVersion names the runtime library and its version, for the log.
func engineVersion() string {
	const module = "github.com/opencontainers/runc"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == module {
				return "libcontainer " + m.Version
			}
		}
	}
	return "libcontainer"
}
