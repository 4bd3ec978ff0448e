package localcluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// configFile is what dispatchers, and other programs that are part of a cluster
// rather than clients of it, read of an Arvados configuration.
const configFile = "config.yml"

// ConfigFile is a cluster configuration file, for programs that want one: it has
// the system root token, and is for root only.
func (c *Cluster) ConfigFile() string { return filepath.Join(c.dir, configFile) }

// writeConfig writes the configuration file, with the addresses of this start.
func (c *Cluster) writeConfig() error {
	text := fmt.Sprintf(`# Made at each start of this cluster: changes are lost.
# Programs must trust %s: SSL_CERT_FILE names it. For supervisors started by
# crunch-dispatch-local, which hands no SSL_CERT_FILE on, it can be copied to
# /etc/arvados/ca-certificates.crt.
Clusters:
  %s:
    SystemRootToken: %s
    ManagementToken: %s
    Services:
      Controller:
        ExternalURL: %s
      Keepstore:
        InternalURLs:
          %s: {}
    Collections:
      BlobSigning: true
      BlobSigningKey: %s
      BlobSigningTTL: %s
      DefaultReplication: 1
    Containers:
      # The cluster's own block server is on this machine.
      LocalKeepBlobBuffersPerVCPU: 0
`, quoted(c.CAFile()), quoted(c.ids.ClusterID), quoted(c.ids.SystemRootToken), quoted(c.ids.ManagementToken), quoted("https://"+c.Host()+"/"), quoted(c.KeepURL()+"/"),
		quoted(c.ids.BlobSigningKey), quoted(signatureTTL.String()))
	// Somebody may be reading the one of the last start.
	tmp := c.ConfigFile() + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.ConfigFile())
}

// quoted is a string as YAML, which takes JSON's.
func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings can be encoded
	}
	return string(b)
}
