package keepstore

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// S3Config are the DriverParameters of an S3 volume (spec keep.md section 11).
type S3Config struct {
	Bucket string
	// Endpoint is the URL of the server, or its host name, for HTTPS. Empty:
	// Amazon's in Region.
	Endpoint string
	// Region is the one requests are signed for. Empty: us-east-1.
	Region string
	// AccessKeyID and SecretAccessKey, or, if the first is empty, those that the
	// machine's instance role gives.
	AccessKeyID, SecretAccessKey string
	// UsePathStyle puts the bucket's name into the path instead of the host
	// name, as it always is where the endpoint is an IP address.
	UsePathStyle bool
	// V2Signature is for servers that do not know signatures of version 4.
	V2Signature bool
	// PrefixLength is how many digits of a hash come before a slash in keys.
	PrefixLength int
	// IndexPageSize is the number of keys asked for at a time; 0 means 1000.
	IndexPageSize int
	// ConnectTimeout bounds making a connection (0 means 1m), ReadTimeout one
	// request with its answer (0 means 10m).
	ConnectTimeout, ReadTimeout time.Duration
	// RaceWindow is how long servers may see different states of the bucket:
	// trash is kept at least for so long, whatever its lifetime.
	RaceWindow time.Duration
	// UnsafeDelete allows trashing where trash has no lifetime: blocks are
	// deleted at once, also those that somebody writes again at that moment.
	UnsafeDelete bool

	// metadata is where the instance role is asked for, for tests.
	metadata string
}

func (c *S3Config) setDefaults() {
	if c.Region == "" {
		c.Region = "us-east-1"
	}
	if c.IndexPageSize == 0 {
		c.IndexPageSize = 1000
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = time.Minute
	}
	if c.ReadTimeout == 0 {
		c.ReadTimeout = 10 * time.Minute
	}
}

func (c *S3Config) check() error {
	switch {
	case c.Bucket == "":
		return errors.New("DriverParameters: Bucket is empty")
	case c.PrefixLength < 0 || c.PrefixLength > 32:
		return fmt.Errorf("DriverParameters: PrefixLength is %d, must be 0 to 32", c.PrefixLength)
	case c.IndexPageSize < 1 || c.IndexPageSize > 1000:
		return fmt.Errorf("DriverParameters: IndexPageSize is %d, must be 1 to 1000", c.IndexPageSize)
	case c.ConnectTimeout < 0 || c.ReadTimeout < 0 || c.RaceWindow < 0:
		return errors.New("DriverParameters: a duration is negative")
	case (c.AccessKeyID == "") != (c.SecretAccessKey == ""):
		return errors.New("DriverParameters: only one of AccessKeyID and SecretAccessKey is set: set both, or none to use the instance role")
	}
	_, _, err := c.server()
	return err
}

// server returns host and port of the endpoint and whether it is spoken to
// over TLS.
func (c *S3Config) server() (host string, secure bool, err error) {
	if c.Endpoint == "" {
		return "s3." + c.Region + ".amazonaws.com", true, nil
	}
	text := c.Endpoint
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return "", false, fmt.Errorf("DriverParameters: Endpoint %q is not the URL of a server, such as https://s3.example.com:9000", c.Endpoint)
	}
	return u.Host, u.Scheme == "https", nil
}

// pathStyle tells where requests name the bucket.
func (c *S3Config) pathStyle() bool {
	if c.UsePathStyle {
		return true
	}
	host, secure, err := c.server()
	if err != nil {
		return true
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	_, err = netip.ParseAddr(strings.Trim(host, "[]"))
	// No certificate is for a host name with more parts than its pattern.
	return err == nil || secure && strings.Contains(c.Bucket, ".")
}
