package arvados

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// States of a container (spec: arvados-api section 9.2).
const (
	StateQueued    = "Queued"
	StateLocked    = "Locked"
	StateRunning   = "Running"
	StateComplete  = "Complete"
	StateCancelled = "Cancelled"
)

// Container is a container record (spec: arvados-api section 9.1). Strings that
// are null on the server are empty here.
type Container struct {
	UUID                      string                     `json:"uuid"`
	ETag                      string                     `json:"etag"`
	OwnerUUID                 string                     `json:"owner_uuid"`
	CreatedAt                 *time.Time                 `json:"created_at"`
	ModifiedAt                *time.Time                 `json:"modified_at"`
	State                     string                     `json:"state"`
	Priority                  int64                      `json:"priority"`
	Command                   []string                   `json:"command"`
	ContainerImage            string                     `json:"container_image"`
	Cwd                       string                     `json:"cwd"`
	Environment               map[string]string          `json:"environment"`
	Mounts                    map[string]Mount           `json:"mounts"`
	OutputPath                string                     `json:"output_path"`
	OutputGlob                []string                   `json:"output_glob"`
	OutputStorageClasses      []string                   `json:"output_storage_classes"`
	OutputProperties          map[string]any             `json:"output_properties"`
	RuntimeConstraints        RuntimeConstraints         `json:"runtime_constraints"`
	SchedulingParameters      SchedulingParameters       `json:"scheduling_parameters"`
	RuntimeUserUUID           string                     `json:"runtime_user_uuid"`
	RuntimeAuthScopes         []string                   `json:"runtime_auth_scopes"`
	AuthUUID                  string                     `json:"auth_uuid"`
	LockedByUUID              string                     `json:"locked_by_uuid"`
	LockCount                 int                        `json:"lock_count"`
	RuntimeStatus             map[string]any             `json:"runtime_status"`
	Progress                  *float64                   `json:"progress"`
	Log                       string                     `json:"log"`
	Output                    string                     `json:"output"`
	ExitCode                  *int                       `json:"exit_code"`
	StartedAt                 *time.Time                 `json:"started_at"`
	FinishedAt                *time.Time                 `json:"finished_at"`
	GatewayAddress            string                     `json:"gateway_address"`
	InteractiveSessionStarted bool                       `json:"interactive_session_started"`
	Cost                      float64                    `json:"cost"`
	SubrequestsCost           float64                    `json:"subrequests_cost"`
	Service                   bool                       `json:"service"`
	PublishedPorts            map[string]json.RawMessage `json:"published_ports"`

	// Raw is the record as the server sent it.
	Raw json.RawMessage `json:"-"`
}

// Mount is one entry of a container's mounts or secret mounts (spec:
// arvados-api section 10.1).
type Mount struct {
	Kind             string `json:"kind"`
	UUID             string `json:"uuid,omitempty"`
	PortableDataHash string `json:"portable_data_hash,omitempty"`
	Path             string `json:"path,omitempty"`
	Writable         bool   `json:"writable,omitempty"`
	// Content is the JSON text of a json mount, or a JSON string in a text
	// mount, byte for byte as the server sent it: numbers keep their spelling.
	Content           json.RawMessage `json:"content,omitempty"`
	Capacity          int64           `json:"capacity,omitempty"` // bytes
	DeviceType        string          `json:"device_type,omitempty"`
	ExcludeFromOutput bool            `json:"exclude_from_output,omitempty"`
}

// Text returns the content of a text mount.
func (m Mount) Text() (string, error) {
	if m.Kind != "text" {
		return "", fmt.Errorf("mount of kind %q has no text", m.Kind)
	}
	var s *string
	// The content may be secret: its decoding errors are not repeated.
	if json.Unmarshal(m.Content, &s) != nil || s == nil {
		return "", errors.New("content of a text mount is not a string")
	}
	return *s, nil
}

// RuntimeConstraints are what a container needs from a node (spec: arvados-api
// section 10.2). Sizes are in bytes.
type RuntimeConstraints struct {
	API           bool  `json:"API"`
	VCPUs         int   `json:"vcpus"`
	RAM           int64 `json:"ram"`
	KeepCacheDisk int64 `json:"keep_cache_disk"`
	KeepCacheRAM  int64 `json:"keep_cache_ram"`
	GPU           GPU   `json:"gpu"`
	// CUDA is deprecated: the server translates it to GPU.
	CUDA *CUDA `json:"cuda,omitempty"`
}

// GPU asks for devices of one stack, "cuda" or "rocm".
type GPU struct {
	Stack          string   `json:"stack"`
	DeviceCount    int      `json:"device_count"`
	DriverVersion  string   `json:"driver_version"`
	HardwareTarget []string `json:"hardware_target"`
	VRAM           int64    `json:"vram"` // bytes
}

// CUDA is the older form of GPU.
type CUDA struct {
	DeviceCount        int    `json:"device_count"`
	DriverVersion      string `json:"driver_version"`
	HardwareCapability string `json:"hardware_capability"`
}

// SchedulingParameters are what a dispatcher needs to know (spec: arvados-api
// section 10.3).
type SchedulingParameters struct {
	Partitions  []string `json:"partitions"`
	Preemptible bool     `json:"preemptible"`
	// MaxRunTime is in seconds; 0 means no limit.
	MaxRunTime int64 `json:"max_run_time"`
	Supervisor bool  `json:"supervisor"`
}

func containerPath(uuid string) string { return "containers/" + url.PathEscape(uuid) }

// GetContainer reads a whole container record.
func (c *Client) GetContainer(ctx context.Context, uuid string) (Container, error) {
	ctr, err := c.container(ctx, http.MethodGet, containerPath(uuid))
	if err == nil && ctr.UUID != uuid {
		err = unexpected(http.MethodGet, containerPath(uuid), "it is about record %q", ctr.UUID)
	}
	return ctr, err
}

func (c *Client) container(ctx context.Context, method, path string) (Container, error) {
	var ctr Container
	err := c.record(ctx, method, path, nil, &ctr, &ctr.Raw)
	return ctr, err
}

// record makes a call whose answer is wanted both as it is and decoded.
func (c *Client) record(ctx context.Context, method, path string, params map[string]any, dst any, raw *json.RawMessage) error {
	both := rawAnd{dst: dst, raw: raw}
	return c.Call(ctx, method, path, params, &both)
}

// rawAnd decodes JSON and keeps the bytes too.
type rawAnd struct {
	dst any
	raw *json.RawMessage
}

func (r *rawAnd) UnmarshalJSON(data []byte) error {
	*r.raw = append(json.RawMessage(nil), data...)
	return decode(data, r.dst)
}

// UpdateContainer changes attributes of a container. Attributes that are hashes
// are replaced whole.
func (c *Client) UpdateContainer(ctx context.Context, uuid string, attrs map[string]any) error {
	var record struct {
		UUID string `json:"uuid"`
	}
	err := c.Call(ctx, http.MethodPut, containerPath(uuid), map[string]any{
		"container": attrs,
		"select":    []string{"uuid"},
	}, &record)
	// Something else than the API may have answered: what it was told is lost,
	// and user code must not run, nor a result be forgotten, on its word.
	if err == nil && record.UUID != uuid {
		err = unexpected(http.MethodPut, containerPath(uuid), "it is not about container %s", uuid)
	}
	return err
}

// ContainerRecordJSON returns the container record as a list shows it, byte for
// byte: the content of container.json in the log. It is nil if there is none.
func (c *Client) ContainerRecordJSON(ctx context.Context, uuid string) (json.RawMessage, error) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	err := c.Call(ctx, http.MethodGet, "containers", map[string]any{
		"filters": [][]string{{"uuid", "=", uuid}},
	}, &list)
	if err != nil {
		return nil, err
	}
	switch len(list.Items) {
	case 0:
		return nil, nil
	case 1:
		return list.Items[0], nil
	}
	return nil, unexpected(http.MethodGet, "containers", "%d records with uuid %s instead of one", len(list.Items), uuid)
}

// ContainerAuth returns the token record of a container that was locked with
// this client's token.
func (c *Client) ContainerAuth(ctx context.Context, uuid string) (APIClientAuthorization, error) {
	var auth APIClientAuthorization
	path := containerPath(uuid) + "/auth"
	err := c.Call(ctx, http.MethodGet, path, nil, &auth)
	if err == nil && (auth.UUID == "" || auth.APIToken == "") {
		err = unexpected(http.MethodGet, path, "there is no token in it")
	}
	return auth, err
}

// SecretMounts returns a container's secret mounts; the client's token must be
// the container's. A server without any answers 404 or an empty object, both of
// which give an empty map. The contents must never be logged.
func (c *Client) SecretMounts(ctx context.Context, uuid string) (map[string]Mount, error) {
	path := containerPath(uuid) + "/secret_mounts"
	var answer json.RawMessage
	err := c.Call(ctx, http.MethodGet, path, nil, &answer)
	if IsStatus(err, http.StatusNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var mounts struct {
		SecretMounts map[string]Mount `json:"secret_mounts"`
	}
	if err := json.Unmarshal(answer, &mounts); err != nil {
		// The reason might quote a secret.
		return nil, unexpected(http.MethodGet, path, "not a table of mounts")
	}
	return mounts.SecretMounts, nil
}

// Lock locks a queued container for this client's token. A lock whose answer
// got lost is recognised: the repeated attempt is refused (422), but the record
// then names this token.
func (c *Client) Lock(ctx context.Context, uuid string) (Container, error) {
	ctr, err := c.container(ctx, http.MethodPost, containerPath(uuid)+"/lock")
	var e *Error
	if !errors.As(err, &e) || e.Status != http.StatusUnprocessableEntity || e.Attempts < 2 {
		return ctr, err
	}
	self, selfErr := c.CurrentAuthorization(ctx)
	now, nowErr := c.GetContainer(ctx, uuid)
	if selfErr == nil && nowErr == nil && now.State == StateLocked && now.LockedByUUID == self.UUID {
		return now, nil
	}
	return ctr, err
}
