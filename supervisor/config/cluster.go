package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"crunch-oci/internal/regular"
)

// DefaultClusterFile is the cluster configuration file if neither -config nor
// ARVADOS_CONFIG names another.
const DefaultClusterFile = "/etc/arvados/config.yml"

// maxClusterFile bounds a cluster configuration file in bytes.
const maxClusterFile = 64 << 20

// Cluster is the part of a cluster's configuration the supervisor reads (spec:
// cli-and-dispatch section 3). All of it is about running a local keepstore.
type Cluster struct {
	ManagementToken string
	Collections     struct {
		DefaultReplication int
	}
	Containers struct {
		// LocalKeepLogsToContainerLog is "none", "all" or "errors".
		LocalKeepLogsToContainerLog string
		// LocalKeepBlobBuffersPerVCPU counts only in a file; in a message the
		// dispatcher has done the multiplication.
		LocalKeepBlobBuffersPerVCPU int
	}
	Volumes map[string]Volume
}

// Volume is one storage volume of a cluster.
type Volume struct {
	AccessViaHosts map[string]json.RawMessage
	ReadOnly       bool
	Replication    int
}

// ClusterFile is what a cluster configuration file says.
type ClusterFile struct {
	// ID is the cluster's, Config its configuration, as JSON; "" and nil if the
	// file could not be used.
	ID     string
	Config json.RawMessage
	// Notes are lines for stderr and the container's log: how it went.
	Notes []string
}

// LoadClusterFile reads a cluster configuration file. That it cannot be used
// does not prevent a run, so it is no error but a note (spec: cli-and-dispatch
// section 4).
func LoadClusterFile(path string) ClusterFile {
	id, raw, err := ReadClusterFile(path)
	if err != nil {
		return ClusterFile{Notes: []string{fmt.Sprintf("could not load config file %s: %v", path, err)}}
	}
	return ClusterFile{ID: id, Config: raw, Notes: []string{"loaded config file " + path}}
}

// String keeps the tokens out of logs.
func (c ClusterFile) String() string {
	return fmt.Sprintf("cluster configuration of %q, %d bytes", c.ID, len(c.Config))
}

// GoString keeps the tokens out of logs.
func (c ClusterFile) GoString() string { return c.String() }

// String keeps the management token out of logs.
func (c Cluster) String() string { return fmt.Sprintf("cluster with %d volumes", len(c.Volumes)) }

// GoString keeps the management token out of logs.
func (c Cluster) GoString() string { return c.String() }

// ParseCluster reads what the supervisor needs of one cluster's configuration,
// with Arvados' defaults for what is missing. Only a wrong type of a key that
// is needed is an error.
func ParseCluster(raw json.RawMessage) (Cluster, error) {
	var c Cluster
	c.Collections.DefaultReplication = 2
	c.Containers.LocalKeepLogsToContainerLog = "none"
	c.Containers.LocalKeepBlobBuffersPerVCPU = 1
	if err := json.Unmarshal(raw, &c); err != nil {
		return Cluster{}, fmt.Errorf("cluster configuration: %w", err)
	}
	return c, nil
}

// ReadClusterFile reads a cluster configuration file, which must define exactly
// one cluster, and returns the cluster's id and its configuration as JSON. Its
// failure does not prevent a run: the error is the reason to be logged as
// "could not load config file PATH: REASON" (spec: cli-and-dispatch section 4).
func ReadClusterFile(path string) (id string, raw json.RawMessage, err error) {
	f, err := regular.Open(path, os.O_RDONLY)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxClusterFile+1))
	if err != nil {
		return "", nil, err
	}
	if len(data) > maxClusterFile {
		return "", nil, fmt.Errorf("larger than %d bytes", maxClusterFile)
	}
	return parseClusterFile(data, filepath.Base(path))
}

func parseClusterFile(data []byte, name string) (id string, raw json.RawMessage, err error) {
	var file struct {
		Clusters map[string]any `yaml:"Clusters"`
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		return "", nil, fmt.Errorf("%s: %w", name, err)
	}
	switch len(file.Clusters) {
	case 0:
		return "", nil, errors.New("no clusters are defined in it")
	case 1:
	default:
		return "", nil, fmt.Errorf("%d clusters are defined in it instead of one", len(file.Clusters))
	}
	for key, cluster := range file.Clusters {
		if cluster == nil {
			cluster = map[string]any{}
		}
		id = key
		if raw, err = json.Marshal(stringKeys(cluster)); err != nil {
			return "", nil, fmt.Errorf("cluster %s: %w", key, err)
		}
	}
	if _, err := ParseCluster(raw); err != nil {
		return "", nil, err
	}
	return id, raw, nil
}

// stringKeys turns YAML's mappings with keys of other types, such as numbers,
// into what JSON can hold.
func stringKeys(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, item := range v {
			v[k] = stringKeys(item)
		}
	case map[any]any:
		m := make(map[string]any, len(v))
		for k, item := range v {
			m[fmt.Sprint(k)] = stringKeys(item)
		}
		return m
	case []any:
		for i, item := range v {
			v[i] = stringKeys(item)
		}
	}
	return v
}
