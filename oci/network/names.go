package network

import (
	"fmt"
	"os"
	"strings"
)

// Names is how a container finds names, until Close.
type Names struct {
	// Resolv is the content of its /etc/resolv.conf.
	Resolv []byte
	// Notes are for the log, a line each.
	Notes []string

	relay *relay
}

// HostNames gives the container with the network namespace ns the host's name
// servers. If the host asks a server on its own loopback, which nobody else can
// reach, its questions are passed on by this process.
func HostNames(ns *os.File, ipv6 bool) (*Names, error) {
	r, err := HostResolver(ipv6)
	if err != nil {
		return nil, fmt.Errorf("find the host's name servers: %w", err)
	}
	return r.names(ns)
}

func (r Resolver) names(ns *os.File) (*Names, error) {
	n := &Names{}
	switch {
	case len(r.Servers) > 0:
		n.Resolv = r.resolv(r.Servers)
	case len(r.Local) > 0:
		var err error
		if n.relay, err = startRelay(ns, r.Local); err != nil {
			return nil, err
		}
		n.Resolv = r.resolv(append(r.Servers, relayAddr.Addr()))
		var servers []string
		for _, s := range r.Local {
			servers = append(servers, s.Addr().String())
		}
		n.Notes = append(n.Notes, fmt.Sprintf("the container's questions for names are passed on to %s, which is on this host's loopback", strings.Join(servers, ", ")))
	default:
		n.Resolv = r.resolv(nil)
		n.Notes = append(n.Notes, "the container cannot resolve names: "+resolvConf+" names no server that it can reach")
	}
	return n, nil
}

// Close ends the passing on of questions.
func (n *Names) Close() error {
	if n.relay == nil {
		return nil
	}
	return n.relay.close()
}
