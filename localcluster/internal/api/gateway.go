package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"

	"crunch-oci/localcluster/internal/containerstate"
	"crunch-oci/localcluster/internal/controller"
	"crunch-oci/localcluster/internal/store"
)

// Shells in running containers, and the tunnels by which they are reached
// (gateway.md section 10). Who may enter is decided here; the rest is the
// controller package's.

// ShellAccess is the cluster's Containers.ShellAccess.
type ShellAccess struct {
	// Admin lets admins into all containers, User others into those that all of
	// whose requests are theirs.
	Admin, User bool
}

// maxGatewayForm is the size, in bytes, of the form of a shell or tunnel.
const maxGatewayForm = 64 << 10

// gatewayPath tells whether a path is that of a shell or a tunnel:
// {connect,containers}/{uuid}/{ssh,gateway_tunnel}.
func gatewayPath(p string) (uuid, what string, ok bool) {
	p, ok = strings.CutPrefix(p, "/arvados/v1/")
	parts := strings.Split(p, "/")
	if !ok || len(parts) != 3 || parts[0] != "connect" && parts[0] != "containers" || parts[2] != "ssh" && parts[2] != "gateway_tunnel" {
		return "", "", false
	}
	return parts[1], parts[2], true
}

// serveGateway answers a request for a shell or a tunnel, and returns when that
// has ended.
func (s *Server) serveGateway(w http.ResponseWriter, c *call, uuid, what string) {
	c.res = &resource{name: "containers", front: true, table: store.Containers}
	err := s.gateway(w, c, uuid, what)
	var refused *controller.Error
	if errors.As(err, &refused) {
		err = plainError(refused.Status, "%s", refused.Text)
	}
	if err != nil {
		s.answer(w, c, nil, err)
	}
}

func (s *Server) gateway(w http.ResponseWriter, c *call, uuid, what string) error {
	if c.r.Method != http.MethodPost {
		return plainError(http.StatusMethodNotAllowed, "API endpoint not found")
	}
	c.r.Body = http.MaxBytesReader(w, c.r.Body, maxGatewayForm)
	if err := c.r.ParseForm(); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		return plainError(http.StatusBadRequest, "malformed form: %v", err)
	}
	if what == "gateway_tunnel" {
		// The secret decides, not the token.
		if err := s.cfg.Gateways.CheckTunnel(uuid, c.r.Form.Get("auth_secret")); err != nil {
			return err
		}
		return s.cfg.Gateways.ServeTunnel(w, uuid)
	}
	address, err := s.mayShell(c, uuid)
	if err != nil {
		return err
	}
	return s.cfg.Gateways.ServeShell(c.r.Context(), w, uuid, address, controller.Shell{
		DetachKeys: c.r.Form.Get("detach_keys"), LoginUsername: c.r.Form.Get("login_username"),
		NoForward: yes(c.r.Form.Get("no_forward")),
	}, func(ctx context.Context) error { return s.sessionStarted(ctx, uuid) })
}

// yes reads a boolean parameter.
func yes(text string) bool { return text == "true" || text == "1" }

// mayShell decides whether the caller may have a shell in a container, and
// returns the address of its gateway.
func (s *Server) mayShell(c *call, uuid string) (address string, err error) {
	token := headerToken(c.r, true)
	if token == "" {
		token = c.r.Form.Get("api_token")
	}
	err = s.cfg.Store.View(c.r.Context(), func(tx *store.Tx) error {
		c.tx = tx
		var err error
		if c.caller, err = s.authenticate(tx, token, c.now); err != nil {
			return err
		}
		if !c.caller.mayCall(c.method, c.r.URL.Path) {
			return backError(http.StatusForbidden, "Forbidden")
		}
		if err := c.checkUUID(uuid); err != nil {
			return err
		}
		rec, err := c.find(s.resources["containers"], uuid, false)
		if err != nil {
			return err
		}
		if !c.caller.admin() || !s.cfg.ShellAccess.Admin {
			if !s.cfg.ShellAccess.User {
				return plainError(http.StatusServiceUnavailable, "shell access is disabled in config")
			}
			mine, err := c.allRequestsMine(uuid)
			if err == nil && !mine {
				err = plainError(http.StatusForbidden, "permission denied: the container also serves requests of other users")
			}
			if err != nil {
				return err
			}
		}
		address = rec.Str("gateway_address")
		return mustRun(rec)
	})
	return address, err
}

// allRequestsMine tells whether the caller was the last to modify every request
// that a container is for.
func (c *call) allRequestsMine(uuid string) (bool, error) {
	n, err := c.tx.Int("SELECT count(*) FROM container_requests WHERE container_uuid = ? AND modified_by_user_uuid IS NOT ?", uuid, c.caller.userUUID())
	return n == 0, err
}

// mustRun refuses a container that cannot be entered.
func mustRun(rec store.Record) error {
	switch state := rec.Str("state"); {
	case state == containerstate.Running:
		return nil
	case containerstate.Final(state):
		return plainError(http.StatusGone, "container has ended")
	default:
		return plainError(http.StatusServiceUnavailable, "container is not running yet (state is %q)", state)
	}
}

// sessionStarted notes in the record that somebody had a shell, once.
func (s *Server) sessionStarted(ctx context.Context, uuid string) error {
	return s.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		rec, err := tx.Get(store.Containers, uuid)
		if err != nil || rec.Bool("interactive_session_started") {
			return err
		}
		if err := mustRun(rec); err != nil {
			return err // it has just ended
		}
		c := &call{s: s, tx: tx, now: now()}
		return c.save(store.Containers, rec, store.Record{
			"interactive_session_started": true, "modified_by_user_uuid": s.systemUUID("tpzed"),
		})
	})
}

// WebServices is the name under which services in containers are reached:
// {uuid}-{port}.{WebServices}. It leads to this machine without a name server
// (RFC 6761 section 6.3).
const WebServices = "containers.localhost"

// portURL is where a port of a container is reached by a client that reached us
// under host.
func portURL(uuid, port, host string) string { return servicesURL(uuid+"-"+port, host) }

// servicesURL is where a service is reached by a client that reached us under
// host; "*" stands for all services.
func servicesURL(name, host string) string {
	port := ""
	if _, p, err := net.SplitHostPort(host); err == nil {
		port = ":" + p
	}
	return "https://" + name + "." + WebServices + port + "/"
}
