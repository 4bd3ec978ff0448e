package arvados

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Discovery is the part of the discovery document a supervisor reads (spec:
// arvados-api section 7). Absent values are 0.
type Discovery struct {
	BasePath                     string   `json:"basePath"`
	RootURL                      string   `json:"rootUrl"`
	Revision                     string   `json:"revision"`
	UUIDPrefix                   string   `json:"uuidPrefix"`
	DefaultCollectionReplication int      `json:"defaultCollectionReplication"`
	BlobSignatureTTL             int64    `json:"blobSignatureTtl"` // seconds
	MaxRequestSize               int64    `json:"maxRequestSize"`   // bytes
	MaxItemsPerResponse          int      `json:"maxItemsPerResponse"`
	DockerImageFormats           []string `json:"dockerImageFormats"`
	CrunchLogUpdatePeriod        int64    `json:"crunchLogUpdatePeriod"` // seconds
	CrunchLogUpdateSize          int64    `json:"crunchLogUpdateSize"`   // bytes
}

// Discovery reads the discovery document.
func (c *Client) Discovery(ctx context.Context) (Discovery, error) {
	const path = "/discovery/v1/apis/arvados/v1/rest"
	var d Discovery
	if err := c.Call(ctx, http.MethodGet, path, nil, &d); err != nil {
		return d, err
	}
	if d.BasePath == "" {
		return d, unexpected(http.MethodGet, path, "no basePath in it; is %s an Arvados API server?", c.cfg.Host)
	}
	return d, nil
}

// ClusterConfig is the part of the public cluster configuration Keep clients
// read.
type ClusterConfig struct {
	ClusterID      string                  `json:"ClusterID"`
	StorageClasses map[string]StorageClass `json:"StorageClasses"`
	Collections    struct {
		// ForwardSlashNameSubstitution stands for slashes in names that are to
		// be names of files; "" if it is not configured.
		ForwardSlashNameSubstitution string
	}
}

// StorageClass is one class blocks can be stored in.
type StorageClass struct {
	Default  bool `json:"Default"`
	Priority int  `json:"Priority"`
}

// DefaultStorageClasses returns the names of the classes that are used when
// none is asked for, sorted; none if the cluster does not say.
func (c ClusterConfig) DefaultStorageClasses() []string {
	var names []string
	for name, class := range c.StorageClasses {
		if class.Default {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// ClusterConfig reads the public part of the cluster configuration.
func (c *Client) ClusterConfig(ctx context.Context) (ClusterConfig, error) {
	var cfg ClusterConfig
	err := c.Call(ctx, http.MethodGet, "config", nil, &cfg)
	return cfg, err
}

// KeepService is one server blocks are read from and written to (spec:
// arvados-api section 8).
type KeepService struct {
	UUID           string `json:"uuid"`
	ServiceHost    string `json:"service_host"`
	ServicePort    int    `json:"service_port"`
	ServiceSSLFlag bool   `json:"service_ssl_flag"`
	// ServiceType "disk" stores one replica per PUT; any other may store all.
	ServiceType string `json:"service_type"`
	ReadOnly    bool   `json:"read_only"`

	// root is the URL of a service named by ARVADOS_KEEP_SERVICES.
	root string
}

// URL returns the service root, without a slash at the end.
func (s KeepService) URL() string {
	if s.root != "" {
		return s.root
	}
	scheme := "http"
	if s.ServiceSSLFlag {
		scheme = "https"
	}
	host := strings.TrimSuffix(strings.TrimPrefix(s.ServiceHost, "["), "]")
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(s.ServicePort))
}

// KeepServices returns the Keep services this host can reach, each root once.
// Those of Config.KeepServices, if there are any, are returned without asking
// the server; they count as proxies (spec: keep section 7).
func (c *Client) KeepServices(ctx context.Context) ([]KeepService, error) {
	var services []KeepService
	if len(c.cfg.KeepServices) > 0 {
		for i, root := range c.cfg.KeepServices {
			services = append(services, KeepService{
				UUID:        fmt.Sprintf("00000-bi6l4-%015d", i),
				ServiceType: "proxy",
				root:        strings.TrimSuffix(root, "/"),
			})
		}
	} else if err := c.List(ctx, "keep_services/accessible", nil, &services); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(services, func(s KeepService) bool {
		dup := seen[s.URL()]
		seen[s.URL()] = true
		return dup
	}), nil
}
