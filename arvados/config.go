package arvados

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Defaults of a Config (spec: arvados-api section 5).
const (
	// DefaultBudget bounds one call, all its attempts and waits included.
	DefaultBudget = 10 * time.Minute
	// AuxiliaryBudget bounds calls whose loss costs little, such as reading a
	// collection. A smaller Config.Budget wins.
	AuxiliaryBudget = 5 * time.Minute
	// DefaultAttemptTimeout bounds one attempt of a call.
	DefaultAttemptTimeout = 5 * time.Minute
	// DefaultMaxResponse bounds the body of one answer in bytes. The largest
	// answers are manifests; a server takes requests of at most 128 MiB
	// (API.MaxRequestSize) and signing makes them less than twice as long.
	DefaultMaxResponse = 512 << 20
)

// DefaultCAFile is the CA bundle used when SSL_CERT_FILE is not set and this
// file is readable (spec: cli-and-dispatch section 5).
const DefaultCAFile = "/etc/arvados/ca-certificates.crt"

// ErrNoHost and ErrNoToken say that the client is not configured.
var (
	// ErrNoHost's text is part of the command line's contract (spec:
	// cli-and-dispatch section 2).
	//lint:ignore ST1005 the text begins with a name
	ErrNoHost = errors.New("Arvados client is not configured (target API host is not set). Maybe env var ARVADOS_API_HOST should be set first?")
	//lint:ignore ST1005 the text begins with a name
	ErrNoToken = errors.New("Arvados client is not configured (API token is not set). Maybe env var ARVADOS_API_TOKEN should be set first?")
)

// Config says how to reach an API server. The zero value of every field but
// Host and Token is useful.
type Config struct {
	// Host is "host" or "host:port", an IPv6 address in brackets. The port is
	// 443 if absent; the protocol is always HTTPS.
	Host string
	// Token is sent as "Authorization: Bearer Token".
	Token string
	// Insecure disables the check of server certificates.
	Insecure bool
	// CAFile is a PEM bundle that replaces the system's roots.
	CAFile string
	// KeepServices are the roots of the Keep services to use instead of those
	// the API server lists.
	KeepServices []string

	// Budget bounds one call, all attempts and waits included; 0 means
	// DefaultBudget.
	Budget time.Duration
	// AttemptTimeout bounds one attempt; 0 means DefaultAttemptTimeout.
	AttemptTimeout time.Duration
	// MaxResponse bounds an answer's body in bytes; 0 means DefaultMaxResponse.
	MaxResponse int64
	// Clock measures budgets and waits between attempts; nil means real time.
	Clock Clock
	// OnRetry, if not nil, is told of every failed attempt that will be
	// repeated. It is called on the goroutine of the call and must not block.
	OnRetry func(Retry)
}

// Retry describes a failed attempt that will be repeated.
type Retry struct {
	// Err is what the attempt ended in.
	Err *Error
	// Wait is the time until the next attempt.
	Wait time.Duration
}

// String keeps the token out of logs.
func (c Config) String() string { return fmt.Sprintf("API host %q", c.Host) }

// GoString keeps the token out of logs.
func (c Config) GoString() string { return c.String() }

// TLS returns the client side TLS settings: certificates are checked against
// CAFile, or the system's roots if there is none, or not at all. Keep services
// are reached with the same settings.
func (c Config) TLS() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.Insecure {
		t.InsecureSkipVerify = true
		return t, nil
	}
	if c.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("CA bundle (SSL_CERT_FILE or -ca-certs): %w", err)
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA bundle (SSL_CERT_FILE or -ca-certs): %s: no PEM certificate in it", c.CAFile)
	}
	return t, nil
}

// checkHost refuses what would only fail later and less clearly.
func checkHost(host string) error {
	if host == "" {
		return ErrNoHost
	}
	bad := func(why string) error {
		return fmt.Errorf("ARVADOS_API_HOST: %q: %s; it must be HOST or HOST:PORT", host, why)
	}
	if strings.ContainsAny(host, "/?#@\\ \t\r\n") {
		return bad("not a host name")
	}
	u, err := url.Parse("https://" + host + "/")
	if err != nil || u.Host != host || u.Hostname() == "" {
		return bad("not a host name")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return bad("bad port")
		}
	} else if strings.HasSuffix(host, ":") {
		return bad("bad port")
	}
	if strings.Contains(u.Hostname(), ":") && net.ParseIP(strings.SplitN(u.Hostname(), "%", 2)[0]) == nil {
		return bad("bad IPv6 address")
	}
	return nil
}

// checkToken refuses what cannot be a header value, without showing it.
func checkToken(token string) error {
	if token == "" {
		return ErrNoToken
	}
	for i := 0; i < len(token); i++ {
		if token[i] <= ' ' || token[i] >= 0x7f {
			return fmt.Errorf("ARVADOS_API_TOKEN: byte %d of the token is not printable ASCII", i)
		}
	}
	return nil
}

// checkKeepService refuses what is not the root of a Keep service.
func checkKeepService(root string) error {
	u, err := url.Parse(root)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return fmt.Errorf("ARVADOS_KEEP_SERVICES: %q is not an absolute http or https URL", root)
	}
	return nil
}
