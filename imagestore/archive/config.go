package archive

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containers/image/v5/pkg/strslice"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// configDocument is what is used of an image configuration. Docker's and OCI's
// have the same shape; the types here are as lenient as Docker's (old builders
// wrote Entrypoint and Cmd as one string, and all sorts of dates), and what
// nobody uses here is not even looked at.
type configDocument struct {
	Created      string   `json:"created"`
	Author       string   `json:"author"`
	Architecture string   `json:"architecture"`
	Variant      string   `json:"variant"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version"`
	OSFeatures   []string `json:"os.features"`
	Config       struct {
		User         string
		ExposedPorts map[string]struct{}
		Env          []string
		Entrypoint   strslice.StrSlice
		Cmd          strslice.StrSlice
		Volumes      map[string]struct{}
		WorkingDir   string
		Labels       map[string]string
		StopSignal   string
	} `json:"config"`
	RootFS struct {
		Type    string          `json:"type"`
		DiffIDs []digest.Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

// ParseConfig parses a configuration document, such as an Image's RawConfig. Errors
// are ErrCorrupt, or ErrUnsupported for an image that is not for Linux.
func ParseConfig(raw []byte) (ocispec.Image, error) {
	var d configDocument
	if err := json.Unmarshal(raw, &d); err != nil {
		return ocispec.Image{}, fmt.Errorf("%w: configuration: %w", ErrCorrupt, err)
	}
	if d.RootFS.Type != "layers" && d.RootFS.Type != "" {
		return ocispec.Image{}, fmt.Errorf("%w: rootfs type %q", ErrUnsupported, short(d.RootFS.Type))
	}
	if d.OS != "" && !strings.EqualFold(d.OS, "linux") {
		return ocispec.Image{}, fmt.Errorf("%w: an image for %s", ErrUnsupported, short(d.OS))
	}
	c := d.Config
	img := ocispec.Image{
		Author: d.Author,
		Platform: ocispec.Platform{
			Architecture: d.Architecture, Variant: d.Variant,
			OS: d.OS, OSVersion: d.OSVersion, OSFeatures: d.OSFeatures,
		},
		Config: ocispec.ImageConfig{
			User: c.User, ExposedPorts: c.ExposedPorts, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd,
			Volumes: c.Volumes, WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal,
		},
		RootFS: ocispec.RootFS{Type: d.RootFS.Type, DiffIDs: d.RootFS.DiffIDs},
	}
	if t, err := time.Parse(time.RFC3339Nano, d.Created); err == nil {
		img.Created = &t
	}
	return img, nil
}
