package keepstore

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"crunch-oci/keep"
)

// RemoteCluster is another cluster, blocks of which clients may ask for with
// locators that it has signed (+R hints; spec keep.md section 9).
type RemoteCluster struct {
	// Host is that of its API server, perhaps with a port. Empty: the cluster
	// counts as not configured.
	Host string
	// Scheme is https (also if empty) or http.
	Scheme string
	// Insecure believes any certificate.
	Insecure bool
}

var (
	errRemoteHint = &statusError{http.StatusBadRequest, "bad remote signature hint"}
	errRemoteList = errors.New("the remote cluster does not tell its Keep services")
)

// maxServiceList bounds a list of Keep services, in bytes.
const maxServiceList = 1 << 20

// remote is a configured cluster and what is known of it.
type remote struct {
	id, base string
	services *keep.ServiceCache
	http     *http.Client
}

// remotes makes the remote clusters of a configuration.
func newRemotes(clusters map[string]RemoteCluster) (map[string]*remote, error) {
	all := make(map[string]*remote)
	for id, c := range clusters {
		if c.Host == "" || len(id) != 5 {
			continue // "*" sets defaults that do not concern us
		}
		scheme := c.Scheme
		if scheme == "" {
			scheme = "https"
		}
		if scheme != "https" && scheme != "http" || strings.ContainsAny(c.Host, "/?#@ ") {
			return nil, fmt.Errorf("keepstore: RemoteClusters.%s: %s://%s is not the URL of a server", id, c.Scheme, c.Host)
		}
		r := &remote{id: id, base: scheme + "://" + c.Host}
		r.http = &http.Client{Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 2 * time.Minute}).DialContext,
			TLSClientConfig:     &tls.Config{InsecureSkipVerify: c.Insecure},
			TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
		}}
		r.services = keep.NewServiceCache(keep.ServiceListerFunc(r.list))
		all[id] = r
	}
	return all, nil
}

// tokenKey is for the salted token in the context of a request.
type tokenKey struct{}

// list asks the cluster's API server for its Keep services, with the token of
// whoever needs them first.
func (r *remote) list(ctx context.Context) ([]keep.Service, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+"/arvados/v1/keep_services/accessible", nil)
	if err != nil {
		return nil, err
	}
	token, _ := ctx.Value(tokenKey{}).(string)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := r.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRemoteList, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: %s", errRemoteList, resp.Status)
	}
	var answer struct {
		Items []struct {
			UUID    string `json:"uuid"`
			Host    string `json:"service_host"`
			Port    int    `json:"service_port"`
			SSL     bool   `json:"service_ssl_flag"`
			Type    string `json:"service_type"`
			Reading bool   `json:"read_only"`
		} `json:"items"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxServiceList)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("%w: %w", errRemoteList, err)
	}
	var services []keep.Service
	for _, i := range answer.Items {
		scheme := "http"
		if i.SSL {
			scheme = "https"
		}
		host := strings.Trim(i.Host, "[]")
		services = append(services, keep.Service{UUID: i.UUID, Type: i.Type, ReadOnly: i.Reading,
			URL: scheme + "://" + net.JoinHostPort(host, strconv.Itoa(i.Port))})
	}
	return services, nil
}

// splitRemote returns the cluster that signed a locator, and the locator as that
// cluster knows it.
func splitRemote(locator string) (id, there string, err error) {
	parts := strings.Split(locator, "+")
	for i, p := range parts {
		if i == 0 || !strings.HasPrefix(p, "R") {
			continue
		}
		cluster, signature, ok := strings.Cut(p[1:], "-")
		if !ok || len(cluster) != 5 || id != "" || !alphanumeric(cluster) {
			return "", "", errRemoteHint
		}
		id, parts[i] = cluster, "A"+signature
	}
	if id == "" {
		return "", "", errRemoteHint
	}
	return id, strings.Join(parts, "+"), nil
}

func alphanumeric(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// serveRemote answers GET and HEAD for a block of another cluster: fetched with
// the client's own token, salted for that cluster, which decides whether it may
// read the block. With "X-Keep-Signature: local" the block is stored here too,
// and X-Keep-Locator names it as a block of this cluster.
func (s *Server) serveRemote(w http.ResponseWriter, r *http.Request, ref keep.PathLocator) error {
	id, there, err := splitRemote(ref.Text)
	if err != nil {
		return err
	}
	cluster := s.remotes[id]
	if cluster == nil {
		return errNoRemote
	}
	found := tokens(r)
	if len(found) == 0 {
		return errNoToken
	}
	token, err := keep.SaltToken(found[0], id)
	if err != nil {
		return &statusError{http.StatusBadRequest, err.Error()}
	}
	if !ref.HasSize || ref.Size < 0 {
		return errMethodNotAllowed
	}
	loc, err := keep.ParseLocator(there)
	if err != nil {
		return errInvalidLocator
	}
	if err := s.buffers.acquire(r.Context()); err != nil {
		return err
	}
	defer s.buffers.release()
	data, err := cluster.fetch(context.WithValue(r.Context(), tokenKey{}, token), token, loc)
	if err != nil {
		return err
	}
	if how, _, _ := strings.Cut(r.Header.Get("X-Keep-Signature"), ","); strings.TrimSpace(how) == "local" {
		if _, err := s.store(r.Context(), ref.Hash, data, wantedClasses(r)); err != nil {
			return err
		}
		w.Header().Set("X-Keep-Locator", s.sign(ref.Hash+"+"+strconv.Itoa(len(data)), found[0]))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	_, err = w.Write(data)
	return err
}

// fetch reads a block from the cluster.
func (r *remote) fetch(ctx context.Context, token string, loc keep.Locator) ([]byte, error) {
	client, err := keep.NewClient(keep.ClientConfig{Services: r.services, Token: token, HTTPClient: r.http})
	if err != nil {
		return nil, &statusError{http.StatusBadRequest, err.Error()}
	}
	// The client is not closed: that would close the connections that the next
	// one uses too, and there is nothing else to it.
	data, err := client.ReadBlock(ctx, loc)
	var failed *keep.ReadError
	switch {
	case err == nil:
		return data, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, keep.ErrBlockTooBig):
		return nil, errTooLarge
	case errors.Is(err, keep.ErrNotFound):
		return nil, errNotFound
	case errors.As(err, &failed) && !failed.Temporary():
		// What that cluster thinks of token and signature.
		last := failed.Services[len(failed.Services)-1]
		return nil, &statusError{last.Status, "remote cluster " + r.id + ": " + oneLine(last.Body)}
	}
	return nil, &statusError{http.StatusBadGateway, "remote cluster " + r.id + ": " + oneLine(err.Error())}
}
