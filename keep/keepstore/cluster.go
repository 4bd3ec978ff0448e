package keepstore

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// VolumeError says why a volume cannot be used as it is configured.
type VolumeError struct {
	Volume string
	Err    error
}

// Error begins with the volume.
func (e *VolumeError) Error() string { return fmt.Sprintf("volume %s: %v", e.Volume, e.Err) }

// Unwrap returns Err.
func (e *VolumeError) Unwrap() error { return e.Err }

// DriverError says that a volume is of a kind that this server does not know.
type DriverError struct{ Driver string }

// Error names the driver.
func (e *DriverError) Error() string {
	return fmt.Sprintf("driver %s is not supported by this keepstore", e.Driver)
}

// duration is a time.Duration as cluster configurations write it: "336h", or
// nanoseconds.
type duration time.Duration

func (d *duration) UnmarshalJSON(text []byte) error {
	var s string
	if json.Unmarshal(text, &s) != nil {
		return json.Unmarshal(text, (*int64)(d))
	}
	v, err := time.ParseDuration(s)
	*d = duration(v)
	return err
}

// clusterConfig is what of a cluster's configuration a block server reads; the
// rest may be whatever it likes.
type clusterConfig struct {
	SystemRootToken, ManagementToken string
	API                              struct {
		MaxKeepBlobBuffers, MaxConcurrentRequests, MaxQueuedRequests int
		RequestTimeout                                               duration
	}
	Collections struct {
		BlobSigning                                                           bool
		BlobSigningKey                                                        string
		BlobSigningTTL, BlobTrashLifetime, BlobTrashCheckInterval             duration
		BlobTrash                                                             bool
		BlobTrashConcurrency, BlobDeleteConcurrency, BlobReplicateConcurrency int
	}
	RemoteClusters map[string]RemoteCluster
	StorageClasses map[string]struct{ Priority int }
	Volumes        map[string]clusterVolume
}

type clusterVolume struct {
	Driver           string
	DriverParameters json.RawMessage
	AccessViaHosts   map[string]struct{ ReadOnly bool }
	ReadOnly         bool

	AllowTrashWhenReadOnly bool
	Replication            int
	StorageClasses         map[string]bool
}

// ConfigFromCluster reads one cluster's configuration, as JSON with Arvados'
// defaults for what is missing, for the server at internalURL. Volumes that only
// other servers may use are left out. What is wrong with a volume is a
// *VolumeError, around a *DriverError if its kind is unknown. No error quotes a
// secret.
func ConfigFromCluster(cluster json.RawMessage, internalURL string) (Config, error) {
	var c clusterConfig
	c.API.MaxKeepBlobBuffers = 128
	c.Collections.BlobSigning, c.Collections.BlobTrash = true, true
	c.Collections.BlobTrashLifetime = duration(336 * time.Hour)
	c.Collections.BlobTrashConcurrency, c.Collections.BlobReplicateConcurrency, c.Collections.BlobDeleteConcurrency = 4, 4, 4
	if err := json.Unmarshal(cluster, &c); err != nil {
		return Config{}, fmt.Errorf("keepstore: cluster configuration: %w", err)
	}
	cfg := Config{
		SystemRootToken: c.SystemRootToken, ManagementToken: c.ManagementToken,
		BlobSigning: c.Collections.BlobSigning, BlobSigningKey: c.Collections.BlobSigningKey,
		BlobSigningTTL: time.Duration(c.Collections.BlobSigningTTL),
		BlobTrash:      c.Collections.BlobTrash, BlobTrashLifetime: time.Duration(c.Collections.BlobTrashLifetime),
		BlobTrashCheckInterval: time.Duration(c.Collections.BlobTrashCheckInterval),
		BlobTrashConcurrency:   c.Collections.BlobTrashConcurrency, BlobReplicateConcurrency: c.Collections.BlobReplicateConcurrency,
		BlobDeleteConcurrency: c.Collections.BlobDeleteConcurrency,
		RemoteClusters:        c.RemoteClusters,
		StorageClassPriority:  make(map[string]int),
		MaxKeepBlobBuffers:    c.API.MaxKeepBlobBuffers, MaxConcurrentRequests: c.API.MaxConcurrentRequests,
		MaxQueuedRequests: c.API.MaxQueuedRequests, RequestTimeout: time.Duration(c.API.RequestTimeout),
	}
	for name, class := range c.StorageClasses {
		cfg.StorageClassPriority[name] = class.Priority
	}
	for _, uuid := range slices.Sorted(maps.Keys(c.Volumes)) {
		v, usable, err := c.Volumes[uuid].here(uuid, internalURL)
		if err != nil {
			return Config{}, &VolumeError{uuid, err}
		}
		if usable {
			cfg.Volumes = append(cfg.Volumes, v)
		}
	}
	return cfg, nil
}

// here is the volume as the server at url may use it, if at all.
func (v clusterVolume) here(uuid, url string) (c VolumeConfig, usable bool, err error) {
	c = VolumeConfig{
		UUID: uuid, ReadOnly: v.ReadOnly, AllowTrashWhenReadOnly: v.AllowTrashWhenReadOnly, Replication: v.Replication,
	}
	if len(v.AccessViaHosts) > 0 {
		access, ok := v.AccessViaHosts[url]
		if !ok {
			access, ok = v.AccessViaHosts[strings.TrimRight(url, "/")+"/"]
		}
		if !ok {
			return c, false, nil
		}
		if access.ReadOnly {
			c.ReadOnly, c.AllowTrashWhenReadOnly = true, false
		}
	}
	switch v.Driver {
	case "Directory":
		var parameters struct {
			Root      string
			Serialize bool
		}
		err = readParameters(v.DriverParameters, &parameters)
		c.Root, c.Serialize = parameters.Root, parameters.Serialize
	case "S3":
		c.S3, err = readS3Parameters(v.DriverParameters)
	default:
		err = &DriverError{v.Driver}
	}
	if err != nil {
		return c, false, err
	}
	for class, offered := range v.StorageClasses {
		if offered {
			c.StorageClasses = append(c.StorageClasses, class)
		}
	}
	slices.Sort(c.StorageClasses)
	return c, true, nil
}

func readParameters(text json.RawMessage, to any) error {
	if len(text) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, to); err != nil {
		return fmt.Errorf("DriverParameters: %w", err)
	}
	return nil
}

// readS3Parameters reads the parameters of an S3 volume. Others than those of
// S3Config (older clusters have some) are left alone.
func readS3Parameters(text json.RawMessage) (*S3Config, error) {
	var p struct {
		Bucket, Endpoint, Region, AccessKeyID, SecretAccessKey string
		UsePathStyle, V2Signature, UnsafeDelete                bool
		PrefixLength, IndexPageSize                            int
		ConnectTimeout, ReadTimeout                            duration
		RaceWindow                                             *duration
	}
	if err := readParameters(text, &p); err != nil {
		return nil, err
	}
	c := &S3Config{
		Bucket: p.Bucket, Endpoint: p.Endpoint, Region: p.Region, AccessKeyID: p.AccessKeyID, SecretAccessKey: p.SecretAccessKey,
		UsePathStyle: p.UsePathStyle, V2Signature: p.V2Signature, UnsafeDelete: p.UnsafeDelete,
		PrefixLength: p.PrefixLength, IndexPageSize: p.IndexPageSize,
		ConnectTimeout: time.Duration(p.ConnectTimeout), ReadTimeout: time.Duration(p.ReadTimeout), RaceWindow: 24 * time.Hour,
	}
	if p.RaceWindow != nil {
		c.RaceWindow = time.Duration(*p.RaceWindow)
	}
	c.setDefaults()
	return c, c.check()
}
