package arvados

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"crunch-oci/internal/regular"
)

// maxSettings bounds settings.conf, which holds a handful of lines.
const maxSettings = 1 << 20

// ConfigFromEnv reads ARVADOS_API_HOST, ARVADOS_API_TOKEN,
// ARVADOS_API_HOST_INSECURE, ARVADOS_KEEP_SERVICES and SSL_CERT_FILE (spec:
// arvados-api section 1, cli-and-dispatch section 5). lookup is os.LookupEnv or
// like it. An ARVADOS_* variable that is not set at all is taken from
// $HOME/.config/arvados/settings.conf; one that is set to nothing is not, so
// that an empty ARVADOS_API_HOST_INSECURE always means "verify".
//
// warning is not fatal: it says that the settings file could not be read, or
// that an entry of ARVADOS_KEEP_SERVICES is no URL; the Config is as good as it
// can be without. What is missing for good is reported by NewClient.
func ConfigFromEnv(lookup func(string) (string, bool)) (cfg Config, warning error) {
	var warnings []error
	settings := map[string]string{}
	if home, _ := lookup("HOME"); home != "" {
		var err error
		settings, err = readSettings(filepath.Join(home, ".config", "arvados", "settings.conf"))
		if err != nil {
			warnings = append(warnings, fmt.Errorf("ignoring settings file: %w", err))
		}
	}
	get := func(name string) string {
		if v, ok := lookup(name); ok {
			return v
		}
		return settings[name]
	}
	cfg.Host = get("ARVADOS_API_HOST")
	cfg.Token = get("ARVADOS_API_TOKEN")
	cfg.Insecure = insecure(get("ARVADOS_API_HOST_INSECURE"))
	for _, root := range strings.Fields(get("ARVADOS_KEEP_SERVICES")) {
		if err := checkKeepService(root); err != nil {
			warnings = append(warnings, fmt.Errorf("ignoring one entry of %w", err))
			continue
		}
		cfg.KeepServices = append(cfg.KeepServices, strings.TrimSuffix(root, "/"))
	}
	cfg.CAFile = caFile(lookup, DefaultCAFile)
	return cfg, errors.Join(warnings...)
}

func caFile(lookup func(string) (string, bool), fallback string) string {
	if f, _ := lookup("SSL_CERT_FILE"); f != "" {
		return f
	}
	f, err := os.Open(fallback)
	if err != nil {
		return ""
	}
	f.Close()
	return fallback
}

// insecure is the meaning of ARVADOS_API_HOST_INSECURE.
func insecure(v string) bool {
	switch strings.ToLower(v) {
	case "1", "yes", "true":
		return true
	}
	return false
}

// readSettings reads a settings.conf. A missing file has no settings; one that
// everybody can write could name another cluster. Its owner is not looked at: who
// sets HOME decides whose file it is (sudo -E).
func readSettings(path string) (map[string]string, error) {
	f, err := regular.Open(path, os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if info.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("%s: everybody can write to it (chmod o-w)", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSettings+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSettings {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxSettings)
	}
	return parseSettings(string(data)), nil
}

// parseSettings takes KEY=value lines, blanks around key and value trimmed.
// Only keys that start with ARVADOS_ count; everything else, comments
// included, is skipped. The last line for a key wins.
func parseSettings(text string) map[string]string {
	settings := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, "=")
		key = strings.TrimSpace(key)
		if ok && strings.HasPrefix(key, "ARVADOS_") {
			settings[key] = strings.TrimSpace(value)
		}
	}
	return settings
}
