package localcluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"crunch-oci/localcluster/internal/api"
	"crunch-oci/localcluster/internal/store"
)

// identity is what a cluster is made with once and keeps: its id and secrets.
type identity struct {
	ClusterID       string
	SystemRootToken string
	ManagementToken string
	BlobSigningKey  string
	UserToken       string // v2 tokens
	AdminToken      string
	DispatcherToken string
	// OwnDispatcherToken is younger than the others: databases of earlier
	// versions get it when they are opened.
	OwnDispatcherToken string
}

// loadIdentity reads the identity from the database, or makes one together
// with the first users. wanted is the cluster id asked for, "" for any.
func loadIdentity(ctx context.Context, db *store.DB, wanted string) (identity, error) {
	var ids identity
	var saved string
	err := db.View(ctx, func(tx *store.Tx) (err error) {
		saved, err = tx.Setting("identity")
		return err
	})
	if err != nil {
		return ids, err
	}
	if saved == "" {
		err = db.Update(ctx, func(tx *store.Tx) error { return ids.create(tx, wanted) })
		return ids, err
	}
	if err := json.Unmarshal([]byte(saved), &ids); err != nil {
		return ids, fmt.Errorf("identity of the cluster: %w", err)
	}
	if wanted != "" && wanted != ids.ClusterID {
		return ids, fmt.Errorf("cluster id %q was asked for, but the cluster in this directory is %q", wanted, ids.ClusterID)
	}
	if ids.OwnDispatcherToken == "" {
		err = db.Update(ctx, func(tx *store.Tx) error { return ids.complete(tx) })
	}
	return ids, err
}

// complete adds what the identity of an earlier version lacks, and saves it.
func (ids *identity) complete(tx *store.Tx) error {
	token, err := api.NewToken(tx, ids.ClusterID, api.SystemUUID(ids.ClusterID, "tpzed"), nil, nil, time.Now().UTC().Truncate(time.Microsecond))
	if err != nil {
		return err
	}
	ids.OwnDispatcherToken = "v2/" + token.Str("uuid") + "/" + token.Str("api_token")
	saved, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	return tx.SetSetting("identity", string(saved))
}

func (ids *identity) create(tx *store.Tx, clusterID string) error {
	if clusterID == "" {
		clusterID = "local"
	}
	*ids = identity{
		ClusterID: clusterID, SystemRootToken: api.RandomString(50), ManagementToken: api.RandomString(50), BlobSigningKey: api.RandomString(50),
	}
	if err := api.SetUp(tx, clusterID); err != nil {
		return err
	}
	at := time.Now().UTC().Truncate(time.Microsecond)
	for _, u := range []struct {
		name, first string
		admin       bool
		token       *string
	}{
		{"user", "Local user", false, &ids.UserToken},
		{"admin", "Local admin", true, &ids.AdminToken},
		{"", "", true, &ids.DispatcherToken}, // the system user's
	} {
		owner := api.SystemUUID(clusterID, "tpzed")
		if u.name != "" {
			var err error
			if owner, err = api.NewUser(tx, clusterID, u.name, u.first, u.admin, at); err != nil {
				return err
			}
		}
		token, err := api.NewToken(tx, clusterID, owner, nil, nil, at)
		if err != nil {
			return err
		}
		*u.token = "v2/" + token.Str("uuid") + "/" + token.Str("api_token")
	}
	return ids.complete(tx)
}
