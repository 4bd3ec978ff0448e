package keepstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	// s3Attempts is how often a request is sent that fails in a way that may
	// pass again; the pauses between add up to about 3 s.
	s3Attempts = 6
	// s3Probe bounds the look at the bucket at the start. Who started this
	// server waits for it for ten seconds.
	s3Probe = 8 * time.Second
	// s3Clock is how far the server's clock may be off before it is believed
	// instead of ours: Date has whole seconds, and took a while to arrive.
	s3Clock = 5 * time.Second
)

// s3Volume is an S3 volume (spec keep.md section 11): a block is the object
// [HASH's first digits/]HASH, its time stamp that of the empty object
// recent/KEY, written after it. Trash is trash/KEY. Neither a bucket nor several
// servers using it can do two things at once, so that a block can be trashed
// while it is written: raced tells that this has happened, and then the copy in
// the trash is the block.
type s3Volume struct {
	S3Config
	core      *minio.Core
	transport *http.Transport
	endpoint  string
	buffers   *buffers
	// skew in nanoseconds, to be added to this machine's time to have the S3
	// server's, whose time stamps are compared with it.
	skew atomic.Int64

	readOnly bool
	ttl      time.Duration
	lifetime time.Duration
	deleters int
}

func newS3Volume(cfg *Config, v VolumeConfig, b *buffers) (*s3Volume, error) {
	s := &s3Volume{
		S3Config: *v.S3, buffers: b, readOnly: v.ReadOnly,
		ttl: cfg.BlobSigningTTL, lifetime: cfg.BlobTrashLifetime, deleters: max(1, cfg.BlobDeleteConcurrency),
	}
	s.setDefaults()
	if err := s.check(); err != nil {
		return nil, err
	}
	host, secure, err := s.server()
	if err != nil {
		return nil, err
	}
	s.endpoint = host
	s.transport = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: s.ConnectTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   s.ConnectTimeout,
		ResponseHeaderTimeout: s.ReadTimeout,
		MaxIdleConnsPerHost:   4 * s3Readers,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true,
	}
	options := &minio.Options{
		Creds: s.credentials(), Secure: secure, Region: s.Region, BucketLookup: minio.BucketLookupDNS,
		Transport: clockReader{s.transport, &s.skew}, MaxRetries: s3Attempts,
	}
	if s.pathStyle() {
		options.BucketLookup = minio.BucketLookupPath
	}
	if s.core, err = minio.NewCore(host, options); err != nil {
		return nil, err
	}
	s.core.SetAppInfo("crunch-run", "keepstore")
	if err := s.probe(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (v *s3Volume) credentials() *credentials.Credentials {
	switch {
	case v.AccessKeyID == "":
		// A machine that is not in a cloud has nobody at the address of the
		// metadata service; that must not take minutes to find out.
		client := &http.Client{Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
			ResponseHeaderTimeout: 5 * time.Second, DisableKeepAlives: true,
		}, Timeout: 5 * time.Second}
		return credentials.New(&credentials.IAM{Client: client, Endpoint: v.metadata})
	case v.V2Signature:
		return credentials.NewStaticV2(v.AccessKeyID, v.SecretAccessKey, "")
	}
	return credentials.NewStaticV4(v.AccessKeyID, v.SecretAccessKey, "")
}

// probe asks the server for something that works only if address, bucket, keys
// and permissions are right: a server that would fail each request should not
// start.
func (v *s3Volume) probe() error {
	ctx, cancel := context.WithTimeout(context.Background(), s3Probe)
	defer cancel()
	if _, err := v.core.GetCreds(); err != nil {
		return fmt.Errorf("no access keys: AccessKeyID is not set, and no instance role gives any: %w", err)
	}
	for o := range v.core.ListObjectsIter(ctx, v.Bucket, minio.ListObjectsOptions{Prefix: "recent/", MaxKeys: 1, Recursive: true}) {
		if o.Err != nil {
			return v.failed("list", "", o.Err)
		}
		break
	}
	return nil
}

func (v *s3Volume) close() { v.transport.CloseIdleConnections() }

// deviceID implements volume.
func (v *s3Volume) deviceID() string { return "s3://" + v.endpoint + "/" + v.Bucket }

func (v *s3Volume) key(hash string) string {
	if v.PrefixLength == 0 {
		return hash
	}
	return hash[:v.PrefixLength] + "/" + hash
}

// hash is the inverse of key.
func (v *s3Volume) hash(key string) (string, bool) {
	hash := key[strings.LastIndexByte(key, '/')+1:]
	return hash, len(hash) == 32 && isHex(hash) && key == v.key(hash)
}

func recentKey(key string) string { return "recent/" + key }
func trashKey(key string) string  { return "trash/" + key }

// now is the time by the clock that stamps objects.
func (v *s3Volume) now() time.Time {
	skew := time.Duration(v.skew.Load())
	if skew.Abs() < s3Clock {
		skew = 0
	}
	return time.Now().Add(skew)
}

// failed says what failed on what. An object that is not there is
// fs.ErrNotExist, which a bucket that is not there is not.
func (v *s3Volume) failed(op, key string, err error) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf("S3 %s %s/%s at %s", op, v.Bucket, key, v.endpoint)
	var r minio.ErrorResponse
	if !errors.As(err, &r) {
		return fmt.Errorf("%s: %w", what, err)
	}
	switch {
	case r.StatusCode == http.StatusNotFound && r.Code != minio.NoSuchBucket && r.Code != minio.NoSuchUpload && key != "":
		return fmt.Errorf("%s: %w", what, fs.ErrNotExist)
	case r.StatusCode == http.StatusInsufficientStorage, r.Code == "QuotaExceeded":
		return fmt.Errorf("%w: %s: %s", errFull, what, r.Code)
	}
	return fmt.Errorf("%s: %w (%s)", what, err, r.Code)
}

// limited is ctx with the time-out of one request.
func (v *s3Volume) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, v.ReadTimeout, errS3Timeout)
}

var errS3Timeout = &statusError{http.StatusServiceUnavailable, "S3 server does not answer"}

// clockReader takes the server's time from its replies.
type clockReader struct {
	http.RoundTripper
	skew *atomic.Int64
}

func (c clockReader) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	if err == nil {
		if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			c.skew.Store(int64(time.Until(t)))
		}
	}
	return resp, err
}
