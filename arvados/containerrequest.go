package arvados

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// States of a container request (spec: arvados-api section 11.2).
const (
	RequestUncommitted = "Uncommitted"
	RequestCommitted   = "Committed"
	RequestFinal       = "Final"
)

// ContainerRequest is a container request record (spec: arvados-api section
// 11.1).
type ContainerRequest struct {
	UUID                    string               `json:"uuid"`
	OwnerUUID               string               `json:"owner_uuid"`
	Name                    string               `json:"name"`
	Description             string               `json:"description"`
	CreatedAt               *time.Time           `json:"created_at"`
	ModifiedAt              *time.Time           `json:"modified_at"`
	Properties              map[string]any       `json:"properties"`
	State                   string               `json:"state"`
	Priority                int64                `json:"priority"`
	RequestingContainerUUID string               `json:"requesting_container_uuid"`
	ContainerUUID           string               `json:"container_uuid"`
	ContainerCount          int                  `json:"container_count"`
	ContainerCountMax       *int                 `json:"container_count_max"`
	Command                 []string             `json:"command"`
	ContainerImage          string               `json:"container_image"`
	Cwd                     string               `json:"cwd"`
	Environment             map[string]string    `json:"environment"`
	Mounts                  map[string]Mount     `json:"mounts"`
	OutputPath              string               `json:"output_path"`
	OutputGlob              []string             `json:"output_glob"`
	OutputName              string               `json:"output_name"`
	OutputTTL               int64                `json:"output_ttl"` // seconds
	OutputStorageClasses    []string             `json:"output_storage_classes"`
	OutputProperties        map[string]any       `json:"output_properties"`
	RuntimeConstraints      RuntimeConstraints   `json:"runtime_constraints"`
	SchedulingParameters    SchedulingParameters `json:"scheduling_parameters"`
	UseExisting             bool                 `json:"use_existing"`
	LogUUID                 string               `json:"log_uuid"`
	OutputUUID              string               `json:"output_uuid"`
	CumulativeCost          float64              `json:"cumulative_cost"`

	// Raw is the record as the server sent it.
	Raw json.RawMessage `json:"-"`
}

// CreateContainerRequest submits work. A repeated attempt may submit it twice.
func (c *Client) CreateContainerRequest(ctx context.Context, attrs map[string]any) (ContainerRequest, error) {
	return c.containerRequest(ctx, http.MethodPost, "container_requests", attrs)
}

// GetContainerRequest reads a whole container request.
func (c *Client) GetContainerRequest(ctx context.Context, uuid string) (ContainerRequest, error) {
	return c.containerRequest(ctx, http.MethodGet, "container_requests/"+url.PathEscape(uuid), nil)
}

// UpdateContainerRequest changes attributes of a container request; priority 0
// cancels it.
func (c *Client) UpdateContainerRequest(ctx context.Context, uuid string, attrs map[string]any) (ContainerRequest, error) {
	return c.containerRequest(ctx, http.MethodPut, "container_requests/"+url.PathEscape(uuid), attrs)
}

func (c *Client) containerRequest(ctx context.Context, method, path string, attrs map[string]any) (ContainerRequest, error) {
	var params map[string]any
	if attrs != nil {
		params = map[string]any{"container_request": attrs}
	}
	var cr ContainerRequest
	err := c.record(ctx, method, path, params, &cr, &cr.Raw)
	return cr, err
}
