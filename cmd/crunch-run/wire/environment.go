package wire

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"crunch-oci/arvados"
	"crunch-oci/supervisor/mounts"
)

// clusterEnv is what an Arvados client needs to reach the cluster, but a token.
// Unset things are empty strings.
func clusterEnv(c arvados.Config) map[string]string {
	env := map[string]string{
		"ARVADOS_API_HOST":          c.Host,
		"ARVADOS_API_HOST_INSECURE": "",
		"ARVADOS_KEEP_SERVICES":     strings.Join(c.KeepServices, " "),
	}
	if c.Insecure {
		env["ARVADOS_API_HOST_INSECURE"] = "1"
	}
	if c.CAFile != "" {
		env["SSL_CERT_FILE"] = c.CAFile
	}
	return env
}

// apiEnv is what a container with API access gets: the cluster's variables, but
// not a path of this host.
func (j Job) apiEnv() map[string]string {
	env := clusterEnv(j.Cluster)
	delete(env, "SSL_CERT_FILE")
	env["ARVADOS_API_HOST"] = j.containerAPIHost()
	return env
}

// containerAPIHost is the API's address for the container.
func (j Job) containerAPIHost() string {
	if j.ContainerAPIHost != "" {
		return j.ContainerAPIHost
	}
	return j.Cluster.Host
}

// caBundle finds the certificates that containers with API access are given.
func (j Job) caBundle() string { return mounts.FindCABundle(j.Cluster.CAFile) }

// mergeEnv sets variables in an environment of "KEY=value" strings.
func mergeEnv(environ []string, set map[string]string) []string {
	merged := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		_, replaced := set[k]
		return replaced
	})
	for k, v := range set {
		merged = append(merged, k+"="+v)
	}
	return merged
}

// identity describes the user and groups of this process, as id(1) does.
func identity() string {
	gids, err := os.Getgroups()
	if err != nil || len(gids) == 0 {
		gids = []int{os.Getgid()}
	}
	groups := make([]string, len(gids))
	for i, gid := range gids {
		groups[i] = named(gid, groupName)
	}
	return fmt.Sprintf("uid=%s gid=%s groups=%s", named(os.Getuid(), userName), named(os.Getgid(), groupName), strings.Join(groups, ","))
}

func named(id int, name func(string) string) string {
	text := strconv.Itoa(id)
	if n := name(text); n != "" {
		text += "(" + n + ")"
	}
	return text
}

func userName(id string) string {
	u, err := user.LookupId(id)
	if err != nil {
		return ""
	}
	return u.Username
}

func groupName(id string) string {
	g, err := user.LookupGroupId(id)
	if err != nil {
		return ""
	}
	return g.Name
}
