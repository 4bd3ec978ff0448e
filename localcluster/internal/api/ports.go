package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"crunch-oci/localcluster/internal/containerstate"
	"crunch-oci/localcluster/internal/controller"
	"crunch-oci/localcluster/internal/store"
)

// Services in containers, under host names of their own (gateway.md section 10).

// portName is the first part of the host name of a service.
var portName = regexp.MustCompile(`^([a-z0-9]{5}-(?:dz642|xvhdp)-[a-z0-9]{15})-([0-9]{1,5})$`)

// portHost tells whether a request is for a service, and for which. A name that
// is none of a container or request may be a link's.
func portHost(host string) (uuid string, port int, link string, ok bool) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	first, rest, found := strings.Cut(strings.ToLower(host), ".")
	if !found {
		return "", 0, "", false
	}
	if m := portName.FindStringSubmatch(first); m != nil {
		port, err := strconv.Atoi(m[2])
		if err != nil {
			port = 0 // refused later on
		}
		return m[1], port, "", true
	}
	return "", 0, first, rest == WebServices
}

// containerCookie tells whose cookies a browser has for a host name.
const containerCookie = "arvados_container_uuid"

// servePort answers a request for a service.
func (s *Server) servePort(w http.ResponseWriter, c *call, uuid string, port int, link string) {
	c.res = &resource{name: "containers", front: true, table: store.Containers}
	if t := c.r.URL.Query().Get(controller.TokenCookie); t != "" {
		s.takeToken(w, c.r, t)
		return
	}
	target, err := s.mayReach(c, uuid, port, link)
	if err == nil {
		if old, cerr := c.r.Cookie(containerCookie); cerr != nil || old.Value != target.uuid {
			http.SetCookie(w, &http.Cookie{Name: containerCookie, Value: target.uuid, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
		}
		c.r.Header.Set("X-Request-Id", c.id)
		if err = s.cfg.Gateways.ServePort(w, c.r, target.uuid, target.address, target.port); err != nil {
			refused := controller.ProxyError(http.StatusBadGateway, err)
			err = plainError(refused.Status, "%s", refused.Text)
		}
	}
	if err != nil {
		s.answer(w, c, nil, err)
	}
}

// takeToken makes a cookie of the token in an address, and an address without
// it, which may be shown and bookmarked.
func (s *Server) takeToken(w http.ResponseWriter, r *http.Request, token string) {
	http.SetCookie(w, &http.Cookie{
		Name: controller.TokenCookie, Value: base64.URLEncoding.EncodeToString([]byte(token)),
		Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	to := *r.URL
	q := to.Query()
	q.Del(controller.TokenCookie)
	to.Scheme, to.Host, to.RawQuery = "", "", q.Encode()
	// Two slashes at the front would be another host.
	w.Header().Set("Location", "/"+strings.TrimLeft(to.RequestURI(), "/"))
	w.WriteHeader(http.StatusSeeOther)
}

// portTarget is a port of a running container.
type portTarget struct {
	uuid, address string
	port          int
}

// mayReach finds the container behind a host name, and decides whether the
// caller may reach its port: everybody if it is published as public, else admins
// and those whose requests the container is for.
func (s *Server) mayReach(c *call, uuid string, port int, link string) (t portTarget, err error) {
	err = s.cfg.Store.View(c.r.Context(), func(tx *store.Tx) error {
		c.tx = tx
		rec, err := c.behind(&uuid, &port, link)
		if err != nil {
			return err
		}
		if port < 1 || port > 65535 {
			return plainError(http.StatusBadRequest, "%d is not a port", port)
		}
		t = portTarget{uuid: rec.Str("uuid"), address: rec.Str("gateway_address"), port: port}
		if !isPublic(rec.JSON("published_ports"), port) {
			if err := s.mayEnterPort(c, rec.Str("uuid")); err != nil {
				return err
			}
		}
		return mustRun(rec)
	})
	return t, err
}

// behind finds the container that a name stands for.
func (c *call) behind(uuid *string, port *int, link string) (store.Record, error) {
	if link != "" {
		links, err := c.tx.Select(store.Links, store.Query{
			Columns: store.Links.Columns(false), Where: []store.Cond{{SQL: "link_class = 'published_port' AND name = ?", Args: []any{link}}}, Limit: 1,
		})
		if err != nil {
			return nil, err
		}
		if len(links) == 0 {
			return nil, plainError(http.StatusNotFound, "no service is called %q", link)
		}
		var properties struct {
			Port json.Number `json:"port"`
		}
		_ = json.Unmarshal(links[0].JSON("properties"), &properties) // no port is refused later on
		n, _ := strconv.Atoi(properties.Port.String())
		*uuid, *port = links[0].Str("head_uuid"), n
	}
	if strings.Contains(*uuid, "-xvhdp-") {
		request, err := c.tx.Get(store.ContainerRequests, *uuid)
		if err != nil {
			return nil, err
		}
		*uuid = request.Str("container_uuid")
		if *uuid == "" {
			return nil, plainError(http.StatusServiceUnavailable, "container request has no container yet (state is %q)", request.Str("state"))
		}
	}
	return c.tx.Get(store.Containers, *uuid)
}

// isPublic tells whether a port needs no token.
func isPublic(published json.RawMessage, port int) bool {
	var ports map[string]struct {
		Access string `json:"access"`
	}
	return json.Unmarshal(published, &ports) == nil && ports[strconv.Itoa(port)].Access == accessPublic
}

// mayEnterPort lets admins and the submitter pass. The token comes in a cookie;
// one that comes in a header is for us alone, and taken out.
func (s *Server) mayEnterPort(c *call, uuid string) (err error) {
	token := ""
	if cookie, err := c.r.Cookie(controller.TokenCookie); err == nil {
		if t, err := base64.URLEncoding.DecodeString(cookie.Value); err == nil {
			token = string(t)
		}
	}
	c.caller, err = s.authenticate(c.tx, token, c.now)
	if errors.Is(err, errNotLoggedIn) {
		// A header is the service's business unless it holds a token of ours.
		c.caller, err = s.authenticate(c.tx, headerToken(c.r, true), c.now)
		if err == nil {
			c.r.Header.Del("Authorization")
		}
	}
	if errors.Is(err, errNotLoggedIn) {
		return plainError(http.StatusUnauthorized, "authorization required: add ?%s=... to the address", controller.TokenCookie)
	}
	if err != nil || c.caller.admin() && c.caller.mayCall(c.method, c.r.URL.Path) {
		return err
	}
	mine, err := c.allRequestsMine(uuid)
	if err != nil {
		return err
	}
	if !mine || !c.caller.mayCall(c.method, c.r.URL.Path) {
		return plainError(http.StatusForbidden, "permission denied")
	}
	return nil
}

// The values of "access" of a published port.
const (
	accessPublic  = "public"
	accessPrivate = "private"
)

// checkPorts validates the published_ports of a request.
func checkPorts(raw json.RawMessage, add func(string, ...any)) {
	var ports map[string]map[string]any
	if json.Unmarshal(raw, &ports) != nil {
		add("Published ports must map port numbers to objects")
		return
	}
	for _, name := range sortedKeys(ports) {
		if n, err := strconv.Atoi(name); err != nil || strconv.Itoa(n) != name || n < 1 || n > 65535 {
			add("Published ports: %q is not a port number from 1 to 65535", name)
			continue
		}
		for _, k := range sortedKeys(ports[name]) {
			text, ok := ports[name][k].(string)
			switch {
			case k != "access" && k != "label" && k != "initial_path":
				add("Published ports [%s][%s]: unknown key", name, k)
			case !ok:
				add("Published ports [%s][%s] must be a string", name, k)
			case k == "access" && text != accessPublic && text != accessPrivate:
				add("Published ports [%s][access] must be %q or %q", name, accessPublic, accessPrivate)
			}
		}
		for _, k := range []string{"access", "label"} {
			if text, ok := ports[name][k].(string); ok && text == "" || ports[name][k] == nil {
				add("Published ports [%s][%s] can't be blank", name, k)
			}
		}
	}
}

// publishPorts adds to the published ports of a container that begins to run
// where they are reached. There are no ports of this machine for them.
func (c *call) publishPorts(rec, changed store.Record) error {
	var ports map[string]map[string]any
	if err := json.Unmarshal(rec.JSON("published_ports"), &ports); err != nil || len(ports) == 0 {
		return err
	}
	for port, p := range ports {
		base := portURL(rec.Str("uuid"), port, c.s.cfg.Host)
		path, _ := p["initial_path"].(string)
		p["base_url"], p["initial_url"], p["external_port"] = base, base+strings.TrimPrefix(path, "/"), nil
	}
	changed["published_ports"] = mustJSON(ports)
	return nil
}

// logTarget is the gateway that has the live log of a container, if there is
// one.
func logTarget(rec store.Record) (address string, ok bool) {
	address = rec.Str("gateway_address")
	return address, containerstate.Active(rec.Str("state")) && address != ""
}

// liveLogOf answers a request to the logs endpoint from the gateway. done is
// false if the container has ended meanwhile: then its log is a collection.
func (s *Server) liveLogOf(w http.ResponseWriter, c *call, request, container, address string) (done bool) {
	err := s.cfg.Gateways.ServeLog(w, c.r, container, address, requestsPath+request+"/log/"+container)
	if err == nil {
		return true
	}
	still := false
	if verr := s.cfg.Store.View(c.r.Context(), func(tx *store.Tx) error {
		rec, err := tx.Get(store.Containers, container)
		if err == nil {
			_, still = logTarget(rec)
		}
		return err
	}); verr != nil {
		s.answer(w, c, nil, verr)
		return true
	}
	if !still {
		return false
	}
	s.answer(w, c, nil, plainError(http.StatusServiceUnavailable, "%s", fmt.Sprintf("proxy error: %v", err)))
	return true
}
