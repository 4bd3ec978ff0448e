package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"crunch-oci/localcluster/internal/containerstate"
	"crunch-oci/localcluster/internal/store"
)

// caller is who sent a request.
type caller struct {
	// token is the string that was presented: block signatures are bound to
	// it, whatever other spelling would mean the same token.
	token     string
	tokenUUID string
	secret    string
	scopes    []string
	user      store.Record
	record    store.Record // the token's; nil for the system root token
}

func (c *caller) userUUID() string { return c.user.Str("uuid") }
func (c *caller) admin() bool      { return c.user.Bool("is_admin") }

// headerToken finds the token in the headers, "" if there is none.
func headerToken(r *http.Request, front bool) string {
	if h := r.Header.Get("Authorization"); h != "" {
		for _, scheme := range []string{"Bearer ", "OAuth2 "} {
			if t, ok := strings.CutPrefix(h, scheme); ok {
				return strings.TrimSpace(t)
			}
		}
		if _, password, ok := r.BasicAuth(); ok && front {
			return password
		}
	}
	if front {
		if cookie, err := r.Cookie("arvados_api_token"); err == nil {
			if t, err := base64.URLEncoding.DecodeString(cookie.Value); err == nil {
				return string(t)
			}
		}
	}
	return ""
}

// systemUUID is the UUID of the system user, token or group.
func (s *Server) systemUUID(infix string) string { return SystemUUID(s.cfg.ClusterID, infix) }

// SystemUUID is the UUID of a cluster's own user ("tpzed"), token ("gj3su") or
// group ("j7d0g").
func SystemUUID(cluster, infix string) string { return cluster + "-" + infix + "-000000000000000" }

// authenticate finds whose token it is, or returns errNotLoggedIn.
func (s *Server) authenticate(tx *store.Tx, token string, at time.Time) (*caller, error) {
	if token == "" {
		return nil, errNotLoggedIn
	}
	c := &caller{token: token}
	if sameSecret(token, s.cfg.SystemRootToken) {
		user, err := tx.Get(store.Users, s.systemUUID("tpzed"))
		if err != nil {
			return nil, err
		}
		c.tokenUUID, c.secret, c.scopes, c.user = s.systemUUID("gj3su"), token, []string{"all"}, user
		return c, nil
	}
	rec, container, err := s.findToken(tx, token, at)
	if err != nil {
		return nil, err
	}
	if container != "" {
		if err := checkContainerToken(tx, rec.Str("uuid"), container); err != nil {
			return nil, err
		}
	}
	user, err := tx.Get(store.Users, rec.Str("owner_uuid"))
	if err != nil || !user.Bool("is_active") {
		if err == nil || errors.Is(err, store.ErrNotFound) {
			err = errNotLoggedIn
		}
		return nil, err
	}
	if err := json.Unmarshal(rec.JSON("scopes"), &c.scopes); err != nil {
		return nil, err
	}
	c.tokenUUID, c.secret, c.user, c.record = rec.Str("uuid"), rec.Str("api_token"), user, rec
	return c, nil
}

// findToken looks up a v1 or v2 token that has not expired. container is the
// fourth part of a v2 token, "" if there is none.
func (s *Server) findToken(tx *store.Tx, token string, at time.Time) (rec store.Record, container string, err error) {
	parts := strings.Split(token, "/")
	var where store.Cond
	secret := token
	switch {
	case parts[0] != "v2" && len(parts) == 1:
		where = store.Cond{SQL: "api_token = ?", Args: []any{token}}
	case parts[0] == "v2" && (len(parts) == 3 || len(parts) == 4) && len(parts[1]) == 27:
		where = store.Cond{SQL: "uuid = ?", Args: []any{parts[1]}}
		secret = parts[2]
		if len(parts) == 4 {
			container = parts[3]
		}
	default:
		return nil, "", errNotLoggedIn
	}
	rs, err := tx.Select(store.Tokens, store.Query{Columns: store.Tokens.Columns(true), Where: []store.Cond{where}, Limit: 1})
	if err != nil {
		return nil, "", err
	}
	if len(rs) == 0 || !sameSecret(secret, rs[0].Str("api_token")) {
		return nil, "", errNotLoggedIn
	}
	if exp, ok := rs[0].Time("expires_at"); ok && !at.Before(exp) {
		return nil, "", errNotLoggedIn
	}
	return rs[0], container, nil
}

// checkContainerToken refuses a token that names a container which is not, or
// no longer, its own.
func checkContainerToken(tx *store.Tx, tokenUUID, container string) error {
	rec, err := tx.Get(store.Containers, container)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if containerstate.Active(rec.Str("state")) && ownToken(rec, tokenUUID) {
		return nil
	}
	return errNotLoggedIn
}

// ownToken tells whether the token is the container's: made by the server when
// it was locked, or handed in with the request.
func ownToken(container store.Record, tokenUUID string) bool {
	if container.Str("auth_uuid") != "" {
		return container.Str("auth_uuid") == tokenUUID
	}
	parts := strings.Split(container.Str("runtime_token"), "/")
	return containerstate.Active(container.Str("state")) && len(parts) >= 3 && parts[1] == tokenUUID
}

// mayCall checks the scopes of the token.
func (c *caller) mayCall(method, path string) bool {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if method == http.MethodGet && path == "/arvados/v1/api_client_authorizations/current" {
		return true
	}
	return slices.ContainsFunc(c.scopes, func(scope string) bool {
		m, p, ok := strings.Cut(scope, " ")
		return scope == "all" || ok && m == method && (p == path || strings.HasSuffix(p, "/") && strings.HasPrefix(path, p))
	})
}

func tokenResource() *resource {
	res := &resource{
		name: "api_client_authorizations", singular: "api_client_authorization", kind: "arvados#apiClientAuthorization",
		model: "ApiClientAuthorization", infix: "gj3su", table: store.Tokens, front: true,
		blank:   []string{"modified_by_user_uuid", "created_by_ip_address", "last_used_by_ip_address"},
		notNull: map[string]any{"scopes": json.RawMessage(`["all"]`)},
	}
	res.endpoints = map[string]endpoint{
		"GET current": {do: func(c *call, _ string) (any, error) { return c.currentToken() }},
		"GET":         {do: (*call).list},
		"GET {uuid}":  {do: (*call).get},
		"POST":        {do: func(c *call, _ string) (any, error) { return c.createToken() }, write: true},
		"PUT {uuid}":  {do: (*call).updateToken, write: true},
		"DELETE {uuid}": {do: func(c *call, uuid string) (any, error) {
			if uuid == c.s.systemUUID("gj3su") {
				return nil, denied("")
			}
			return c.destroy(uuid)
		}, write: true},
	}
	return res
}

// currentToken shows the presented token. Times are null in this answer
// whatever the record has (capture 009).
func (c *call) currentToken() (any, error) {
	scopes, err := json.Marshal(c.caller.scopes)
	if err != nil {
		return nil, err
	}
	r := store.Record{
		"uuid": c.caller.tokenUUID, "owner_uuid": c.caller.userUUID(), "scopes": json.RawMessage(scopes), "expires_at": c.caller.record["expires_at"],
	}
	out, err := c.render(r, nil)
	if err != nil {
		return nil, err
	}
	out["api_token"] = c.caller.secret
	return out, nil
}

// createToken makes a token for the caller, or, for an admin, for the user in
// owner_uuid. The secret is in this one answer.
func (c *call) createToken() (any, error) {
	attrs, err := c.attributes()
	if err != nil {
		return nil, err
	}
	owner := attrs.Str("owner_uuid")
	if owner == "" {
		owner = c.caller.userUUID()
	}
	if owner != c.caller.userUUID() && !c.caller.admin() {
		return nil, denied("")
	}
	if _, err := c.tx.Get(store.Users, owner); err != nil {
		return nil, invalid("Owner uuid must be set to User")
	}
	var scopes []string
	if j := attrs.JSON("scopes"); j != nil && json.Unmarshal(j, &scopes) != nil {
		return nil, invalid("Scopes must be an array of strings")
	}
	rec, err := NewToken(c.tx, c.s.cfg.ClusterID, owner, scopes, attrs["expires_at"], c.now)
	if err != nil {
		return nil, err
	}
	out, err := c.render(rec, nil)
	if err != nil {
		return nil, err
	}
	out["api_token"] = rec.Str("api_token")
	return out, nil
}

// updateToken changes when a token expires and what it is good for.
func (c *call) updateToken(uuid string) (any, error) {
	return c.update(uuid, func(rec, changed store.Record) error {
		for _, n := range sortedKeys(changed) {
			if n != "expires_at" && n != "scopes" {
				return invalid("%s cannot be changed", humanize(n))
			}
		}
		var scopes []string
		if j, ok := changed["scopes"].(json.RawMessage); ok && json.Unmarshal(j, &scopes) != nil {
			return invalid("Scopes must be an array of strings")
		}
		return nil
	})
}

// NewToken stores a new token of a user. No scopes mean all; expires is a
// time.Time or nil.
func NewToken(tx *store.Tx, cluster, owner string, scopes []string, expires any, at time.Time) (store.Record, error) {
	if len(scopes) == 0 {
		scopes = []string{"all"}
	}
	j, err := json.Marshal(scopes)
	if err != nil {
		return nil, err
	}
	rec := store.Record{
		"uuid": NewUUID(cluster, "gj3su"), "owner_uuid": owner, "created_at": at, "modified_at": at, "modified_by_user_uuid": nil,
		"api_token": RandomString(secretLength), "expires_at": expires, "scopes": json.RawMessage(j),
		"created_by_ip_address": nil, "last_used_at": nil, "last_used_by_ip_address": nil,
	}
	return rec, tx.Insert(store.Tokens, rec)
}
