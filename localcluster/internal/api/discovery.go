package api

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"crunch-oci/localcluster/internal/store"
)

// discoveryCache holds the part of the discovery document that is the same
// for every client.
type discoveryCache struct {
	once      sync.Once
	resources map[string]any
	schemas   map[string]any
}

// discoveryDocument describes the API to clients, some of which generate their
// methods from it (section 7).
func (s *Server) discoveryDocument(c *call) any {
	s.discovery.once.Do(s.describe)
	root := c.root()
	return map[string]any{
		"kind": "discovery#restDescription", "discoveryVersion": "v1", "id": "arvados:v1", "name": "arvados", "version": "v1", "revision": "20250402",
		"source_version": "unknown", "sourceVersion": "unknown", "packageVersion": "unknown", "generatedAt": s.started.Format("2006-01-02T15:04:05Z"),
		"title": "Arvados API", "protocol": "rest", "rootUrl": root, "baseUrl": root + "arvados/v1/", "basePath": "/arvados/v1/",
		"servicePath": "arvados/v1/", "batchPath": "batch", "uuidPrefix": s.cfg.ClusterID, "defaultCollectionReplication": 1,
		"defaultTrashLifetime": int64(defaultTrashLifetime.Seconds()), "blobSignatureTtl": int64(s.cfg.Signer.TTL.Seconds()),
		"maxRequestSize": maxRequestSize, "maxItemsPerResponse": maxItemsPerResponse, "dockerImageFormats": []string{"v2"},
		"crunchLogUpdatePeriod": 1800, "crunchLogUpdateSize": 33554432, "remoteHosts": map[string]any{}, "remoteHostsViaDNS": false,
		"websocketUrl": "", "workbenchUrl": "", "workbench2Url": "", "keepWebServiceUrl": "",
		"parameters": map[string]any{
			"alt": map[string]any{"type": "string", "default": "json", "enum": []string{"json"},
				"enumDescriptions": []string{"Responses with Content-Type of application/json"}, "location": "query"},
			"fields":      map[string]any{"type": "string", "location": "query"},
			"key":         map[string]any{"type": "string", "location": "query"},
			"oauth_token": map[string]any{"type": "string", "location": "query"},
		},
		"auth": map[string]any{"oauth2": map[string]any{"scopes": map[string]any{
			"https://api.arvados.org/auth/arvados":          map[string]any{"description": "full access"},
			"https://api.arvados.org/auth/arvados.readonly": map[string]any{"description": "read access"},
		}}},
		"schemas": s.discovery.schemas, "resources": s.discovery.resources,
	}
}

func param(typ, location string, required bool) map[string]any {
	return map[string]any{"type": typ, "location": location, "required": required}
}

// describe makes the methods and schemas from the resources themselves.
func (s *Server) describe() {
	s.discovery.resources, s.discovery.schemas = map[string]any{}, map[string]any{}
	for name, res := range s.resources {
		if res.table == nil {
			continue
		}
		methods := map[string]any{}
		for _, key := range slices.Sorted(maps.Keys(res.endpoints)) {
			verb, rest, _ := strings.Cut(key, " ")
			// Of two ways to the same, "groups/contents" has the UUID among the
			// parameters, where it can be left out.
			if name := methodName(verb, rest); methods[name] == nil {
				methods[name] = res.method(verb, rest)
			}
		}
		s.discovery.resources[name] = map[string]any{"methods": methods}
		properties := map[string]any{}
		for _, a := range res.table.Attrs {
			if !a.Secret {
				properties[a.Name] = map[string]any{"type": schemaType[a.Type]}
			}
		}
		for n := range res.computed {
			if properties[n] == nil {
				properties[n] = map[string]any{"type": "string"}
			}
		}
		s.discovery.schemas[res.model] = map[string]any{
			"id": res.model, "type": "object", "uuidPrefix": res.infix, "description": res.model, "properties": properties}
		s.discovery.schemas[res.model+"List"] = map[string]any{
			"id": res.model + "List", "type": "object", "description": "A list of " + res.model, "properties": map[string]any{
				"kind": map[string]any{"type": "string"}, "etag": map[string]any{"type": "string"},
				"items": map[string]any{"type": "array", "items": map[string]any{"$ref": res.model}}}}
	}
	s.discovery.resources["configs"] = map[string]any{"methods": map[string]any{"get": map[string]any{
		"id": "arvados.configs.get", "path": "config", "httpMethod": "GET", "parameters": map[string]any{}, "response": map[string]any{}}}}
	s.discovery.resources["vocabularies"] = map[string]any{"methods": map[string]any{"get": map[string]any{
		"id": "arvados.vocabularies.get", "path": "vocabulary", "httpMethod": "GET", "parameters": map[string]any{}, "response": map[string]any{}}}}
}

var schemaType = map[store.Type]string{
	store.Text: "string", store.Int: "integer", store.Float: "float", store.Bool: "boolean", store.Time: "datetime", store.Hash: "Hash", store.Array: "Array",
}

// methodName is the name of a method in clients: "get", "list", "lock".
func methodName(verb, rest string) string {
	switch {
	case rest == "" && verb == "GET":
		return "list"
	case rest == "" && verb == "POST":
		return "create"
	case rest == "{uuid}":
		return map[string]string{"GET": "get", "PUT": "update", "DELETE": "delete"}[verb]
	default:
		return strings.TrimPrefix(rest, "{uuid}/")
	}
}

func (res *resource) method(verb, rest string) map[string]any {
	name := methodName(verb, rest)
	path, response := res.name, res.model
	parameters := map[string]any{}
	if rest != "" {
		path += "/" + rest
	}
	if strings.Contains(rest, "{uuid}") {
		parameters["uuid"] = param("string", "path", true)
	}
	if name != "delete" {
		parameters["select"] = param("array", "query", false)
	}
	switch name {
	case "list", "contents", "shared":
		response += "List"
		if name == "contents" {
			parameters["uuid"], parameters["recursive"] = param("string", "query", false), param("boolean", "query", false)
		}
		for n, t := range map[string]string{"filters": "array", "where": "object", "order": "array", "distinct": "boolean", "limit": "integer",
			"offset": "integer", "count": "string", "cluster_id": "string", "bypass_federation": "boolean"} {
			parameters[n] = param(t, "query", false)
		}
	case "create":
		parameters["ensure_unique_name"] = param("boolean", "query", false)
		parameters["cluster_id"] = param("string", "query", false)
	}
	if (res.trashable || res.name == "container_requests") && slices.Contains([]string{"get", "list", "contents"}, name) {
		parameters["include_trash"] = param("boolean", "query", false)
	}
	if res.name == "collections" && name == "list" {
		parameters["include_old_versions"] = param("boolean", "query", false)
	}
	m := map[string]any{"id": "arvados." + res.name + "." + name, "path": path, "httpMethod": verb, "description": name + " " + res.name,
		"parameters": parameters, "response": map[string]any{"$ref": response}}
	if name == "create" || name == "update" {
		m["request"] = map[string]any{"required": true, "properties": map[string]any{res.singular: map[string]any{"$ref": res.model}}}
	}
	return m
}
