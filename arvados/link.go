package arvados

import (
	"context"
	"net/http"
)

// Link is a link record; links name images, among other things (spec:
// arvados-api section 13).
type Link struct {
	UUID       string         `json:"uuid"`
	OwnerUUID  string         `json:"owner_uuid"`
	LinkClass  string         `json:"link_class"`
	Name       string         `json:"name"`
	HeadUUID   string         `json:"head_uuid"`
	TailUUID   string         `json:"tail_uuid"`
	Properties map[string]any `json:"properties"`
}

// CreateLink makes a link.
func (c *Client) CreateLink(ctx context.Context, attrs map[string]any) (Link, error) {
	var l Link
	err := c.Call(ctx, http.MethodPost, "links", map[string]any{"link": attrs}, &l)
	return l, err
}

// List reads one page of records, such as "container_requests" or "links", into
// items, a pointer to a slice. params are those of the list call (filters,
// order, limit, offset, select, ...).
func (c *Client) List(ctx context.Context, resource string, params map[string]any, items any) error {
	page := struct {
		Items any `json:"items"`
	}{items}
	return c.Call(ctx, http.MethodGet, resource, params, &page)
}
