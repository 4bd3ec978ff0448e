package api

import (
	"net"
	"net/http"

	"crunch-oci/localcluster/internal/store"
)

// keepServiceTable has no rows in the store: there is one Keep service, and
// where it is depends on where the client asks.
var keepServiceTable = store.NewTable("keep_services",
	store.Attr{Name: "uuid"}, store.Attr{Name: "owner_uuid"}, store.Attr{Name: "created_at", Type: store.Time},
	store.Attr{Name: "modified_by_user_uuid"}, store.Attr{Name: "modified_at", Type: store.Time},
	store.Attr{Name: "service_host"}, store.Attr{Name: "service_port", Type: store.Int},
	store.Attr{Name: "service_ssl_flag", Type: store.Bool}, store.Attr{Name: "service_type"}, store.Attr{Name: "read_only", Type: store.Bool},
)

func keepServiceResource() *resource {
	res := &resource{
		name: "keep_services", singular: "keep_service", kind: "arvados#keepService", model: "KeepService", infix: "bi6l4", table: keepServiceTable,
	}
	list := func(c *call, items []map[string]any) map[string]any {
		return map[string]any{"kind": "arvados#keepServiceList", "etag": "", "self_link": "", "items": items, "items_available": len(items)}
	}
	res.endpoints = map[string]endpoint{
		"GET accessible": {public: true, do: func(c *call, _ string) (any, error) {
			items := []map[string]any{}
			// Clients outside get proxies only, and there is none.
			if c.r.Header.Get("X-External-Client") != "1" {
				item, err := c.keepService()
				if err != nil {
					return nil, err
				}
				items = append(items, item)
			}
			out := list(c, items)
			out["offset"], out["limit"] = nil, nil
			return out, nil
		}},
		"GET": {do: func(c *call, _ string) (any, error) {
			limit, err := c.number("limit", 100)
			if err != nil {
				return nil, err
			}
			item, err := c.keepService()
			if err != nil {
				return nil, err
			}
			out := list(c, []map[string]any{item})
			if limit == 0 {
				out["items"] = []any{}
			}
			out["offset"], out["limit"] = 0, limit
			return out, nil
		}},
		"GET {uuid}": {do: func(c *call, uuid string) (any, error) {
			item, err := c.keepService()
			if err == nil && item["uuid"] != uuid {
				err = errPathNotFound()
			}
			return item, err
		}},
	}
	return res
}

// keepService is the record of the one Keep service. Its UUID does not depend
// on its address, which is another one after each start.
func (c *call) keepService() (map[string]any, error) {
	local, _ := c.r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	host, port := c.s.cfg.KeepAt(local)
	return c.render(store.Record{
		"uuid": c.s.systemUUID("bi6l4"), "owner_uuid": c.s.systemUUID("tpzed"), "created_at": c.s.started,
		"modified_by_user_uuid": c.s.systemUUID("tpzed"), "modified_at": c.s.started, "service_host": host, "service_port": int64(port),
		"service_ssl_flag": false, "service_type": "disk", "read_only": false,
	}, nil)
}
