package arvados

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func lookup(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := env[name]; return v, ok }
}

// settingsHome returns a HOME whose settings.conf has the given text.
func settingsHome(t testing.TB, text string) string {
	t.Helper()
	home := t.TempDir()
	dir := filepath.Join(home, ".config", "arvados")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "settings.conf"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return home
}

func TestConfigFromEnv(t *testing.T) {
	home := settingsHome(t, "# comment\r\n  ARVADOS_API_HOST = settings.example:8443 \nARVADOS_API_TOKEN=from=settings\n"+
		"ARVADOS_API_HOST_INSECURE=1\nHOME=/elsewhere\nARVADOS_KEEP_SERVICES=http://10.0.0.1:25107/ http://10.0.0.2:25107\n")
	for name, tc := range map[string]struct {
		env     map[string]string
		want    Config
		warning string
	}{
		"nothing": {nil, Config{}, ""},
		"environment": {map[string]string{"ARVADOS_API_HOST": "h:1", "ARVADOS_API_TOKEN": "t", "ARVADOS_API_HOST_INSECURE": "Yes", "SSL_CERT_FILE": "/ca"},
			Config{Host: "h:1", Token: "t", Insecure: true, CAFile: "/ca"}, ""},
		"settings": {map[string]string{"HOME": home},
			Config{Host: "settings.example:8443", Token: "from=settings", Insecure: true, KeepServices: []string{"http://10.0.0.1:25107", "http://10.0.0.2:25107"}}, ""},
		"environment wins, also when empty": {map[string]string{"HOME": home, "ARVADOS_API_HOST": "h", "ARVADOS_API_HOST_INSECURE": "", "ARVADOS_KEEP_SERVICES": ""},
			Config{Host: "h", Token: "from=settings"}, ""},
		"no settings file":             {map[string]string{"HOME": t.TempDir(), "ARVADOS_API_HOST": "h"}, Config{Host: "h"}, ""},
		"settings file is a directory": {map[string]string{"HOME": dirInstead(t), "ARVADOS_API_HOST": "h"}, Config{Host: "h"}, "ignoring settings file"},
		"settings file is a pipe":      {map[string]string{"HOME": pipeInstead(t), "ARVADOS_API_HOST": "h"}, Config{Host: "h"}, "not a regular file"},
		"settings file is everybody's": {map[string]string{"HOME": everybodys(t), "ARVADOS_API_HOST": "h"}, Config{Host: "h"}, "everybody can write to it"},
		"settings file is huge":        {map[string]string{"HOME": hugeInstead(t), "ARVADOS_API_HOST": "h"}, Config{Host: "h"}, "larger than 1048576 bytes"},
		"settings file is a program":   {map[string]string{"HOME": settingsHome(t, "\x7fELF\x00\xff=\n\x00ARVADOS_API_HOST=x\nARVADOS_API_TOKEN\n=t\nARVADOS_\xff=\xff"), "ARVADOS_API_HOST": "h"}, Config{Host: "h"}, ""},
		"bad keep service": {map[string]string{"ARVADOS_KEEP_SERVICES": "nonsense http://a/ https://[fd00::1]:443"},
			Config{KeepServices: []string{"http://a", "https://[fd00::1]:443"}}, `"nonsense"`},
	} {
		cfg, warning := ConfigFromEnv(lookup(tc.env))
		if tc.want.CAFile == "" {
			// What the machine itself has.
			tc.want.CAFile = caFile(lookup(nil), DefaultCAFile)
		}
		if !reflect.DeepEqual(cfg, tc.want) {
			t.Errorf("%s: %#v token %q insecure %v keep %q ca %q", name, cfg, cfg.Token, cfg.Insecure, cfg.KeepServices, cfg.CAFile)
		}
		if (warning == nil) != (tc.warning == "") || warning != nil && !strings.Contains(warning.Error(), tc.warning) {
			t.Errorf("%s: warning %v", name, warning)
		}
	}
}

func dirInstead(t *testing.T) string {
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, ".config", "arvados", "settings.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	return home
}

func pipeInstead(t *testing.T) string {
	home := settingsHome(t, "")
	path := filepath.Join(home, ".config", "arvados", "settings.conf")
	if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	return home
}

func everybodys(t *testing.T) string {
	home := settingsHome(t, "ARVADOS_API_TOKEN=t\n")
	if err := os.Chmod(filepath.Join(home, ".config", "arvados", "settings.conf"), 0o666); err != nil {
		t.Fatal(err)
	}
	return home
}

func hugeInstead(t *testing.T) string {
	home := settingsHome(t, "ARVADOS_API_TOKEN=t\n")
	if err := os.Truncate(filepath.Join(home, ".config", "arvados", "settings.conf"), 1<<30); err != nil {
		t.Fatal(err)
	}
	return home
}

func TestInsecureNeedsAClearYes(t *testing.T) {
	for _, v := range []string{"1", "yes", "true", "TRUE", "Yes"} {
		if !insecure(v) {
			t.Errorf("%q", v)
		}
	}
	for _, v := range []string{"", "0", "no", "false", "on", "y", "2", " 1", "1 "} {
		if insecure(v) {
			t.Errorf("%q", v)
		}
	}
}

func TestCAFileFallback(t *testing.T) {
	fallback := filepath.Join(t.TempDir(), "ca.crt")
	if f := caFile(lookup(nil), fallback); f != "" {
		t.Errorf("missing fallback used: %q", f)
	}
	if err := os.WriteFile(fallback, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if f := caFile(lookup(map[string]string{"SSL_CERT_FILE": ""}), fallback); f != fallback {
		t.Errorf("%q", f)
	}
	if f := caFile(lookup(map[string]string{"SSL_CERT_FILE": "/x"}), fallback); f != "/x" {
		t.Errorf("%q", f)
	}
}

func TestNewClientChecksItsConfig(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want string // "" means accepted
	}{
		{Config{Host: "h", Token: "t"}, ""},
		{Config{Host: "h.example:443", Token: "v2/a/b/c"}, ""},
		{Config{Host: "127.0.0.1:8000", Token: "t"}, ""},
		{Config{Host: "[fd00::1]", Token: "t"}, ""},
		{Config{Host: "[fd00::1]:443", Token: "t"}, ""},
		{Config{Token: "t"}, "target API host is not set"},
		{Config{Host: "h"}, "ARVADOS_API_TOKEN"},
		{Config{Host: "https://h", Token: "t"}, "HOST or HOST:PORT"},
		{Config{Host: "h/", Token: "t"}, "HOST or HOST:PORT"},
		{Config{Host: "user@h", Token: "t"}, "HOST or HOST:PORT"},
		{Config{Host: "h:", Token: "t"}, "bad port"},
		{Config{Host: "h:99999", Token: "t"}, "bad port"},
		{Config{Host: "h:x", Token: "t"}, "HOST or HOST:PORT"},
		{Config{Host: "fd00::1", Token: "t"}, "HOST or HOST:PORT"},
		{Config{Host: "[zz]", Token: "t"}, "HOST or HOST:PORT"},
		{Config{Host: "h h", Token: "t"}, "HOST or HOST:PORT"},
		{Config{Host: "h", Token: "secret\n"}, "byte 6"},
		{Config{Host: "h", Token: "t", KeepServices: []string{"ftp://x"}}, "ARVADOS_KEEP_SERVICES"},
	} {
		_, err := NewClient(tc.cfg)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v", tc.cfg.Host, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("token in error: %v", err)
		}
	}
	if _, err := NewClient(Config{}); !errors.Is(err, ErrNoHost) {
		t.Error(err)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("ARVADOS_API_HOST=h\nARVADOS_API_TOKEN = t\n")
	f.Add("=\n==\nARVADOS_=\r\n\x00ARVADOS_X=1")
	f.Fuzz(func(t *testing.T, text string) {
		for k, v := range parseSettings(text) {
			if !strings.HasPrefix(k, "ARVADOS_") || k != strings.TrimSpace(k) || v != strings.TrimSpace(v) || strings.ContainsAny(k+v, "\n") || strings.Contains(k, "=") {
				t.Errorf("%q = %q", k, v)
			}
		}
	})
}
