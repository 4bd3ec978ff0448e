package localcluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"crunch-oci/localcluster/internal/api"
)

// The cluster has its own certificate authority, which clients are told to
// trust; it stays the same as long as the directory. The certificate of the
// server is made anew at each start, as the addresses are.
const (
	caCertFile = "ca.pem"
	caKeyFile  = "ca.key"
)

// caLife and certLife are long because nobody renews them: the authority is
// replaced at a start that finds less than certLife left.
const (
	caLife   = 20 * 365 * 24 * time.Hour
	certLife = 5 * 365 * 24 * time.Hour
)

// clockSkew is how far behind a client's clock may be.
const clockSkew = 24 * time.Hour

// certificate returns a certificate for the cluster's addresses.
func (c *Cluster) certificate() (tls.Certificate, error) {
	ca, caKey, err := c.authority()
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "localhost", Organization: []string{"local cluster " + c.ids.ClusterID}},
		NotBefore:   time.Now().Add(-clockSkew),
		NotAfter:    time.Now().Add(certLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "*." + api.WebServices},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if name, err := os.Hostname(); err == nil && name != "localhost" {
		template.DNSNames = append(template.DNSNames, name)
	}
	for _, a := range c.addrs {
		ip := a.api.Addr().(*net.TCPAddr).IP
		if ip.IsUnspecified() {
			template.IPAddresses = append(template.IPAddresses, hostAddresses()...)
		} else {
			template.IPAddresses = append(template.IPAddresses, ip)
		}
	}
	if template.SerialNumber, err = serial(); err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// hostAddresses are the addresses that listening on all of them means.
func hostAddresses() []net.IP {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil // loopback is in the certificate anyway
	}
	var out []net.IP
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() {
			out = append(out, n.IP)
		}
	}
	return out
}

func serial() (*big.Int, error) { return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) }

// authority reads the certificate authority, or makes one. A half-written pair
// is made anew: the key is written first.
func (c *Cluster) authority() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	pair, err := tls.LoadX509KeyPair(c.CAFile(), filepath.Join(c.dir, caKeyFile))
	if err == nil {
		key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
		if ok && pair.Leaf.IsCA && time.Until(pair.Leaf.NotAfter) > certLife {
			return pair.Leaf, key, nil
		}
	} else if _, serr := os.Stat(c.CAFile()); serr == nil {
		return nil, nil, fmt.Errorf("certificate authority %s: %w (remove it, and a new one is made)", c.CAFile(), err)
	} else if !errors.Is(serr, fs.ErrNotExist) {
		return nil, nil, serr
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "authority of local cluster " + c.ids.ClusterID},
		NotBefore: time.Now().Add(-clockSkew), NotAfter: time.Now().Add(caLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	if template.SerialNumber, err = serial(); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	if err := writePEM(filepath.Join(c.dir, caKeyFile), "PRIVATE KEY", keyDER, 0o600); err != nil {
		return nil, nil, err
	}
	return cert, key, writePEM(c.CAFile(), "CERTIFICATE", der, 0o644)
}

// writePEM replaces a file at once.
func writePEM(name, kind string, der []byte, mode os.FileMode) error {
	tmp := name + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}
