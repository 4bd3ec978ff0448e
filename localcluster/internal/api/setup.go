package api

import (
	"encoding/json"
	"errors"
	"time"

	"crunch-oci/localcluster/internal/store"
)

// SetUp makes the system user and the system group of a cluster if they are
// missing.
func SetUp(tx *store.Tx, cluster string) error {
	at := now()
	system := SystemUUID(cluster, "tpzed")
	_, err := tx.Get(store.Users, system)
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err := tx.Insert(store.Users, store.Record{
		"uuid": system, "owner_uuid": system, "created_at": at, "modified_at": at, "modified_by_user_uuid": system,
		"email": "root", "first_name": "root", "last_name": "", "username": "", "is_active": true, "is_admin": true, "prefs": json.RawMessage("{}"),
	}); err != nil {
		return err
	}
	return tx.Insert(store.Groups, store.Record{
		"uuid": SystemUUID(cluster, "j7d0g"), "owner_uuid": system, "created_at": at, "modified_at": at, "modified_by_user_uuid": system,
		"name": "System group", "group_class": "role", "properties": json.RawMessage("{}"), "is_trashed": false,
	})
}

// NewUser stores an active user and returns the UUID.
func NewUser(tx *store.Tx, cluster, username, firstName string, admin bool, at time.Time) (string, error) {
	rec := store.Record{
		"uuid": NewUUID(cluster, "tpzed"), "owner_uuid": SystemUUID(cluster, "tpzed"), "created_at": at, "modified_at": at,
		"modified_by_user_uuid": SystemUUID(cluster, "tpzed"), "email": username + "@localhost", "username": username, "first_name": firstName,
		"last_name": "", "identity_url": nil, "is_active": true, "is_admin": admin, "prefs": json.RawMessage("{}"),
	}
	return rec.Str("uuid"), tx.Insert(store.Users, rec)
}
