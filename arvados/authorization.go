package arvados

import (
	"context"
	"net/http"
	"time"
)

// APIClientAuthorization is a token record. Formatting it does not show the
// token.
type APIClientAuthorization struct {
	UUID      string     `json:"uuid"`
	OwnerUUID string     `json:"owner_uuid"`
	APIToken  string     `json:"api_token"` // the secret part alone
	Scopes    []string   `json:"scopes"`
	ExpiresAt *time.Time `json:"expires_at"`
}

// String keeps the token out of logs.
func (a APIClientAuthorization) String() string { return "token " + a.UUID }

// GoString keeps the token out of logs.
func (a APIClientAuthorization) GoString() string { return a.String() }

// TokenV2 returns the token in the form clients send.
func (a APIClientAuthorization) TokenV2() string { return "v2/" + a.UUID + "/" + a.APIToken }

// ContainerToken returns the token with which the container acts. The last part
// tells the server which container that is (spec: lifecycle section 1).
func (a APIClientAuthorization) ContainerToken(containerUUID string) string {
	return a.TokenV2() + "/" + containerUUID
}

// CurrentAuthorization returns the record of the client's own token.
func (c *Client) CurrentAuthorization(ctx context.Context) (APIClientAuthorization, error) {
	var auth APIClientAuthorization
	err := c.Call(ctx, http.MethodGet, "api_client_authorizations/current", nil, &auth)
	return auth, err
}

// User is the part of a user record that matters here.
type User struct {
	UUID     string `json:"uuid"`
	Email    string `json:"email"`
	Username string `json:"username"`
	FullName string `json:"full_name"`
	IsActive bool   `json:"is_active"`
	IsAdmin  bool   `json:"is_admin"`
}

// CurrentUser returns the user whose rights the client's token carries.
func (c *Client) CurrentUser(ctx context.Context) (User, error) {
	var u User
	err := c.Call(ctx, http.MethodGet, "users/current", nil, &u)
	return u, err
}
