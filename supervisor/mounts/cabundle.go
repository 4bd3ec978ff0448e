package mounts

import "os"

// caBundles are the places where distributions keep their certificates, in the
// order of lifecycle.md section 12.
var caBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// FindCABundle returns the host file with certificates for containers that use
// the API: the first that exists of sslCertFile (the value of SSL_CERT_FILE, or
// "") and the usual places; "" if there is none, which is no error.
func FindCABundle(sslCertFile string) string {
	return firstFile(append([]string{sslCertFile}, caBundles...))
}

func firstFile(names []string) string {
	for _, name := range names {
		if fi, err := os.Stat(name); err == nil && !fi.IsDir() {
			return name
		}
	}
	return ""
}
