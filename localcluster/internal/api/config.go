package api

import (
	"fmt"
	"strings"
	"time"
)

// configResource is the public part of the cluster configuration (capture
// 002), with what holds for this cluster.
func configResource() *resource {
	res := &resource{name: "config", singular: "config", front: true}
	res.endpoints = map[string]endpoint{"GET": {public: true, do: func(c *call, _ string) (any, error) { return c.s.exportedConfig(c), nil }}}
	return res
}

func vocabularyResource() *resource {
	res := &resource{name: "vocabulary", singular: "vocabulary", front: true}
	res.endpoints = map[string]endpoint{"GET": {public: true, do: func(*call, string) (any, error) {
		return map[string]any{"kind": "arvados#vocabulary", "strict_tags": false, "tags": map[string]any{}}, nil
	}}}
	return res
}

// duration writes a duration as configuration files do: "336h".
func duration(d time.Duration) string {
	s := strings.TrimSuffix(d.String(), "0s")
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// root is the address at which the client reached this server.
func (c *call) root() string {
	return fmt.Sprintf("https://%s/", c.r.Host)
}

func (s *Server) exportedConfig(c *call) map[string]any {
	services := map[string]any{}
	for _, n := range []string{"Composer", "ContainerWebServices", "DispatchCloud", "DispatchLSF", "DispatchSLURM", "Health", "Keepbalance",
		"Keepproxy", "Keepstore", "RailsAPI", "WebDAV", "WebDAVDownload", "WebShell", "Websocket", "Workbench1", "Workbench2"} {
		services[n] = map[string]any{"ExternalURL": ""}
	}
	services["Controller"] = map[string]any{"ExternalURL": c.root()}
	services["ContainerWebServices"] = map[string]any{"ExternalURL": servicesURL("*", c.r.Host)}
	return map[string]any{
		"ClusterID": s.cfg.ClusterID,
		"API": map[string]any{
			"FreezeProjectRequiresDescription": false, "FreezeProjectRequiresProperties": map[string]any{}, "MaxItemsPerResponse": maxItemsPerResponse,
			"MaxRequestSize": maxRequestSize, "RequestTimeout": duration(requestTimeout), "SendTimeout": "1m", "UnfreezeProjectRequiresAdmin": false,
		},
		"Collections": map[string]any{
			"BlobSigning": true, "BlobSigningTTL": duration(s.cfg.Signer.TTL), "CollectionVersioning": false, "DefaultReplication": 1,
			"DefaultTrashLifetime": duration(defaultTrashLifetime), "ForwardSlashNameSubstitution": "", "ManagedProperties": map[string]any{},
			"PreserveVersionIfIdle": "10s", "S3FolderObjects": true, "TrustAllContent": false,
		},
		"Containers": map[string]any{
			"AlwaysUsePreemptibleInstances": false, "DefaultKeepCacheRAM": 0, "MaxRetryAttempts": maxRetryAttempts, "MaximumPriceFactor": 1.5,
			"MinRetryPeriod": "0s", "ReserveExtraRAM": 576716800, "RuntimeEngine": "docker",
			"ShellAccess": map[string]any{"Admin": s.cfg.ShellAccess.Admin, "User": s.cfg.ShellAccess.User}, "SupportedDockerImageFormats": map[string]any{"v2": map[string]any{}},
		},
		"InstanceTypes":  map[string]any{},
		"RemoteClusters": map[string]any{"*": map[string]any{"ActivateUsers": false, "Host": "", "Insecure": false, "Proxy": false, "Scheme": "https"}},
		"Services":       services,
		"StorageClasses": map[string]any{"default": map[string]any{"Default": true, "Priority": 0}},
		"Volumes": map[string]any{s.systemUUID("nyw5e"): map[string]any{
			"AccessViaHosts": nil, "ReadOnly": false, "Replication": 1, "StorageClasses": map[string]any{"default": true}}},
	}
}
