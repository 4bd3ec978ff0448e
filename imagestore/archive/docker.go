package archive

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// dockerManifest is the list of images that docker save has written since 1.10,
// and everybody else's "docker archive" with it (moby image/tarexport).
const dockerManifest = "manifest.json"

// dockerItem is one image of it. Parent and LayerSources are not needed.
type dockerItem struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (x *index) dockerImages() ([]candidate, error) {
	raw, err := x.document(dockerManifest)
	if err != nil {
		return nil, err
	}
	var items []dockerItem
	if err := json.Unmarshal(raw, &items); err != nil {
		return nil, fmt.Errorf("%w: manifest.json: %w", ErrCorrupt, err)
	}
	var out []candidate
	for i, it := range items {
		if it.Config == "" {
			return nil, fmt.Errorf("%w: manifest.json names no configuration for image %d of %d", ErrCorrupt, i+1, len(items))
		}
		config, err := x.document(it.Config)
		if err != nil {
			return nil, err
		}
		id := digest.FromBytes(config)
		if named := digestInName(it.Config); named != "" && named != id.Encoded() {
			return nil, fmt.Errorf("%w: the configuration %s has the digest %s", ErrCorrupt, short(it.Config), id)
		}
		out = append(out, candidate{id: id, config: config, layers: it.Layers, names: it.RepoTags})
	}
	return out, nil
}

var hex64 = regexp.MustCompile(`^[0-9a-f]{64}$`)

// digestInName gives the hexadecimal digits when the writer named a document by
// its SHA-256 digest: <hex>.json (docker), blobs/sha256/<hex> (engine 25),
// sha256:<hex> (kaniko).
func digestInName(name string) string {
	base := strings.TrimPrefix(strings.TrimSuffix(path.Base(name), ".json"), "sha256:")
	if hex64.MatchString(base) {
		return base
	}
	return ""
}
