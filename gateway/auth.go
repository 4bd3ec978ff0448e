package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"
)

// AuthSecret is the secret of one container, as the dispatcher and the
// controller derive it from the cluster's SystemRootToken (gateway.md section 3).
func AuthSecret(systemRootToken, containerUUID string) string {
	return keyedHash(systemRootToken, []byte(containerUUID))
}

// Authorization returns what the client must send in X-Arvados-Authorization to
// the server with this leaf certificate (DER), and what the server must answer
// in X-Arvados-Authorization-Response (gateway.md section 3). Either side proves
// that it knows the secret, and that nobody sits between the two ends of the TLS
// connection.
func Authorization(secret string, leaf []byte) (request, response string) {
	request = keyedHash(secret, leaf)
	return request, keyedHash(secret, []byte(request))
}

// AuthorizationEqual compares two of these values in a time that does not tell
// where they differ.
func AuthorizationEqual(got, want string) bool {
	return subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}

// keyedHash is HMAC-SHA256 in lower-case hex. The key is the text itself, also
// where it happens to be hex.
func keyedHash(key string, message []byte) string {
	h := hmac.New(sha256.New, []byte(key))
	h.Write(message)
	return hex.EncodeToString(h.Sum(nil))
}

// newCertificate makes the certificate of this process. There is no PKI: clients
// check none of its fields, only that the server knows the secret (gateway.md
// section 3). It is never stored.
func newCertificate() (tls.Certificate, error) {
	fail := func(err error) (tls.Certificate, error) {
		return tls.Certificate{}, fmt.Errorf("make a TLS certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return fail(err)
	}
	serial.Add(serial, big.NewInt(1)) // RFC 5280 section 4.1.2.2: positive
	name := pkix.Name{Organization: []string{"N/A"}}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               name,
		Issuer:                name,
		NotBefore:             now.Add(-time.Hour), // clocks of a cluster differ
		NotAfter:              now.AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fail(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
