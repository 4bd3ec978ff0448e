package keep

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Service is a server that stores or forwards blocks.
type Service struct {
	// UUID places the service in the probe order of each block.
	UUID string
	// URL is the base, without a trailing slash: http://host:25107.
	URL string
	// Type is "disk" for a keepstore. Anything else, usually "proxy", gets
	// long time-outs and is written to one request at a time.
	Type string
	// ReadOnly services are read, never written.
	ReadOnly bool
}

// ServiceLister tells which services there are. It is called before each round
// of attempts and should remember its answer: see ServiceCache.
type ServiceLister interface {
	KeepServices(ctx context.Context) ([]Service, error)
}

// ServiceListerFunc is a function as a ServiceLister.
type ServiceListerFunc func(ctx context.Context) ([]Service, error)

// KeepServices calls f.
func (f ServiceListerFunc) KeepServices(ctx context.Context) ([]Service, error) { return f(ctx) }

// FixedServices is a ServiceLister that always returns itself.
type FixedServices []Service

// KeepServices returns s.
func (s FixedServices) KeepServices(context.Context) ([]Service, error) { return s, nil }

// ParseServices reads the value of ARVADOS_KEEP_SERVICES, URLs separated by
// spaces. Their services have made-up UUIDs and count as proxies. Entries that
// are not absolute HTTP URLs come back in bad, to be logged.
func ParseServices(value string) (services FixedServices, bad []string) {
	for _, entry := range strings.Fields(value) {
		u, err := url.Parse(entry)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			bad = append(bad, entry)
			continue
		}
		services = append(services, Service{
			UUID: fmt.Sprintf("00000-bi6l4-%015d", len(services)),
			URL:  strings.TrimRight(entry, "/"),
			Type: "proxy",
		})
	}
	return services, bad
}

func isAlphanumeric(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') {
			return false
		}
	}
	return true
}

// ProbeOrder returns services in the order in which a client looks for the
// block with the given hash, so that all clients look at the same place first.
func ProbeOrder(hash string, services []Service) []Service {
	return orderBy(services, func(uuid string) string { return blockWeight(hash, uuid) })
}

// MountProbeOrder is ProbeOrder as Arvados' FUSE mount has it: by the last 15
// characters of a UUID, whatever its length. The two differ for the UUIDs of the
// API server's list, which have one character more than others unless a service's
// Rendezvous is set; then each finds sooner what its own kind has written.
func MountProbeOrder(hash string, services []Service) []Service {
	return orderBy(services, func(uuid string) string {
		sum := md5.Sum([]byte(hash + uuid[max(len(uuid)-15, 0):]))
		return hex.EncodeToString(sum[:])
	})
}

// orderBy sorts by descending weight.
func orderBy(services []Service, weight func(uuid string) string) []Service {
	type weighted struct {
		weight string
		Service
	}
	list := make([]weighted, len(services))
	for i, s := range services {
		list[i] = weighted{weight(s.UUID), s}
	}
	slices.SortStableFunc(list, func(a, b weighted) int { return strings.Compare(b.weight, a.weight) })
	ordered := make([]Service, len(list))
	for i, w := range list {
		ordered[i] = w.Service
	}
	return ordered
}

// uniqueServices drops services whose URL came before.
func uniqueServices(services []Service) []Service {
	seen := make(map[string]bool, len(services))
	unique := make([]Service, 0, len(services))
	for _, s := range services {
		if !seen[s.URL] {
			seen[s.URL] = true
			unique = append(unique, s)
		}
	}
	return unique
}

// Mount is a volume as a keepstore sees it when it chooses where a block goes.
type Mount struct {
	UUID string
	// Priority is the highest priority of the mount's storage classes.
	Priority int
}

// MountOrder returns a keepstore's mounts in the order in which it looks for the
// block with the given hash: high priority first, then by ascending weight,
// unlike clients do with services.
func MountOrder(hash string, mounts []Mount) []Mount {
	ordered := slices.Clone(mounts)
	slices.SortStableFunc(ordered, func(a, b Mount) int {
		return cmp.Or(
			cmp.Compare(b.Priority, a.Priority),
			strings.Compare(blockWeight(hash, a.UUID), blockWeight(hash, b.UUID)))
	})
	return ordered
}

// blockWeight is the rendezvous weight: the last 15 characters of a UUID of the
// usual length, or all of an unusual one, hashed together with the block.
func blockWeight(hash, uuid string) string {
	if len(uuid) == 27 {
		uuid = uuid[12:]
	}
	sum := md5.Sum([]byte(hash + uuid))
	return hex.EncodeToString(sum[:])
}
