package store

import (
	"errors"
	"fmt"
	"time"
)

// migrations brings a database from version i to i+1. Never change one that
// has been released; append.
var migrations = []string{
	schema1,
	schema2,
	schema3,
}

const schema1 = `
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE users (
	uuid TEXT PRIMARY KEY, owner_uuid TEXT, created_at TEXT, modified_by_user_uuid TEXT, modified_at TEXT,
	email TEXT, username TEXT, first_name TEXT, last_name TEXT, identity_url TEXT,
	is_active INTEGER NOT NULL DEFAULT 0, is_admin INTEGER NOT NULL DEFAULT 0, prefs TEXT NOT NULL DEFAULT '{}');
CREATE UNIQUE INDEX users_username ON users (username) WHERE username <> '';

CREATE TABLE api_client_authorizations (
	uuid TEXT PRIMARY KEY, owner_uuid TEXT NOT NULL, created_at TEXT, modified_by_user_uuid TEXT, modified_at TEXT,
	api_token TEXT NOT NULL, created_by_ip_address TEXT, expires_at TEXT, last_used_at TEXT,
	last_used_by_ip_address TEXT, scopes TEXT NOT NULL DEFAULT '["all"]');
CREATE UNIQUE INDEX api_client_authorizations_token ON api_client_authorizations (api_token);

CREATE TABLE groups (
	uuid TEXT PRIMARY KEY, owner_uuid TEXT NOT NULL, created_at TEXT, modified_by_user_uuid TEXT, modified_at TEXT,
	name TEXT, group_class TEXT, description TEXT, properties TEXT NOT NULL DEFAULT '{}',
	delete_at TEXT, trash_at TEXT, is_trashed INTEGER NOT NULL DEFAULT 0, frozen_by_uuid TEXT);
CREATE UNIQUE INDEX groups_owner_name ON groups (owner_uuid, name) WHERE is_trashed = 0;

CREATE TABLE links (
	uuid TEXT PRIMARY KEY, owner_uuid TEXT NOT NULL, created_at TEXT, modified_by_user_uuid TEXT, modified_at TEXT,
	link_class TEXT, name TEXT, head_uuid TEXT, tail_uuid TEXT, properties TEXT NOT NULL DEFAULT '{}');
CREATE INDEX links_class_name ON links (link_class, name);
CREATE INDEX links_head ON links (head_uuid);
CREATE INDEX links_owner ON links (owner_uuid);

CREATE TABLE logs (
	id INTEGER PRIMARY KEY AUTOINCREMENT, uuid TEXT NOT NULL UNIQUE, owner_uuid TEXT NOT NULL, created_at TEXT,
	modified_by_user_uuid TEXT, modified_at TEXT, object_uuid TEXT, object_owner_uuid TEXT,
	event_at TEXT, event_type TEXT, summary TEXT, properties TEXT NOT NULL DEFAULT '{}');
CREATE INDEX logs_object ON logs (object_uuid);

CREATE TABLE collections (
	uuid TEXT PRIMARY KEY, owner_uuid TEXT NOT NULL, created_at TEXT, modified_by_user_uuid TEXT, modified_at TEXT,
	name TEXT, description TEXT, properties TEXT NOT NULL DEFAULT '{}',
	portable_data_hash TEXT NOT NULL,
	replication_desired INTEGER, replication_confirmed INTEGER, replication_confirmed_at TEXT,
	storage_classes_desired TEXT NOT NULL, storage_classes_confirmed TEXT NOT NULL DEFAULT '[]',
	storage_classes_confirmed_at TEXT,
	delete_at TEXT, trash_at TEXT, is_trashed INTEGER NOT NULL DEFAULT 0,
	version INTEGER NOT NULL DEFAULT 1, current_version_uuid TEXT, preserve_version INTEGER NOT NULL DEFAULT 0,
	file_count INTEGER NOT NULL DEFAULT 0, file_size_total INTEGER NOT NULL DEFAULT 0,
	manifest_text TEXT NOT NULL DEFAULT '');
CREATE UNIQUE INDEX collections_owner_name ON collections (owner_uuid, name) WHERE is_trashed = 0;
CREATE INDEX collections_pdh ON collections (portable_data_hash);
CREATE INDEX collections_trash ON collections (trash_at) WHERE trash_at IS NOT NULL;
CREATE INDEX collections_modified ON collections (modified_at, uuid);

CREATE TABLE containers (
	uuid TEXT PRIMARY KEY, owner_uuid TEXT NOT NULL, created_at TEXT, modified_by_user_uuid TEXT, modified_at TEXT,
	command TEXT NOT NULL, container_image TEXT NOT NULL, cwd TEXT NOT NULL DEFAULT '.',
	environment TEXT NOT NULL DEFAULT '{}', exit_code INTEGER, finished_at TEXT, locked_by_uuid TEXT, log TEXT,
	mounts TEXT NOT NULL DEFAULT '{}', output TEXT, output_path TEXT NOT NULL, output_glob TEXT NOT NULL DEFAULT '[]',
	priority INTEGER NOT NULL DEFAULT 0, progress REAL, runtime_constraints TEXT NOT NULL DEFAULT '{}',
	runtime_status TEXT NOT NULL DEFAULT '{}', started_at TEXT, state TEXT NOT NULL, auth_uuid TEXT,
	scheduling_parameters TEXT NOT NULL DEFAULT '{}', runtime_user_uuid TEXT,
	runtime_auth_scopes TEXT NOT NULL DEFAULT '["all"]', lock_count INTEGER NOT NULL DEFAULT 0, gateway_address TEXT,
	interactive_session_started INTEGER NOT NULL DEFAULT 0, output_storage_classes TEXT NOT NULL DEFAULT '["default"]',
	output_properties TEXT NOT NULL DEFAULT '{}', cost REAL NOT NULL DEFAULT 0, subrequests_cost REAL NOT NULL DEFAULT 0,
	service INTEGER NOT NULL DEFAULT 0, published_ports TEXT NOT NULL DEFAULT '{}',
	secret_mounts TEXT NOT NULL DEFAULT '{}', runtime_token TEXT);
CREATE INDEX containers_state_priority ON containers (state, priority);
CREATE INDEX containers_locked_by ON containers (locked_by_uuid) WHERE locked_by_uuid IS NOT NULL;
CREATE INDEX containers_auth ON containers (auth_uuid) WHERE auth_uuid IS NOT NULL;
CREATE INDEX containers_modified ON containers (modified_at, uuid);

CREATE TABLE container_requests (
	uuid TEXT PRIMARY KEY, owner_uuid TEXT NOT NULL, created_at TEXT, modified_by_user_uuid TEXT, modified_at TEXT,
	name TEXT, description TEXT, properties TEXT NOT NULL DEFAULT '{}', state TEXT NOT NULL,
	requesting_container_uuid TEXT, container_uuid TEXT, container_count INTEGER NOT NULL DEFAULT 0,
	container_count_max INTEGER, command TEXT NOT NULL, container_image TEXT NOT NULL, cwd TEXT NOT NULL DEFAULT '.',
	environment TEXT NOT NULL DEFAULT '{}', mounts TEXT NOT NULL DEFAULT '{}', output_path TEXT NOT NULL,
	output_glob TEXT NOT NULL DEFAULT '[]', output_name TEXT, output_ttl INTEGER NOT NULL DEFAULT 0,
	output_storage_classes TEXT NOT NULL DEFAULT '["default"]', output_properties TEXT NOT NULL DEFAULT '{}',
	priority INTEGER NOT NULL DEFAULT 0, runtime_constraints TEXT NOT NULL DEFAULT '{}',
	scheduling_parameters TEXT NOT NULL DEFAULT '{}', use_existing INTEGER NOT NULL DEFAULT 1,
	expires_at TEXT, filters TEXT, log_uuid TEXT, output_uuid TEXT, cumulative_cost REAL NOT NULL DEFAULT 0,
	service INTEGER NOT NULL DEFAULT 0, published_ports TEXT NOT NULL DEFAULT '{}',
	secret_mounts TEXT NOT NULL DEFAULT '{}', runtime_token TEXT);
CREATE INDEX container_requests_container ON container_requests (container_uuid);
CREATE INDEX container_requests_parent ON container_requests (requesting_container_uuid) WHERE requesting_container_uuid IS NOT NULL;
CREATE INDEX container_requests_owner ON container_requests (owner_uuid);
CREATE INDEX container_requests_modified ON container_requests (modified_at, uuid);
`

// schema2 is for reusing containers and for permission links.
const schema2 = `
ALTER TABLE containers ADD COLUMN secret_mounts_md5 TEXT;
CREATE INDEX containers_reuse ON containers (container_image, command, state);
CREATE INDEX links_permission ON links (tail_uuid) WHERE link_class = 'permission';
`

// schema3 is for many projects.
const schema3 = `
CREATE INDEX groups_owner ON groups (owner_uuid);
CREATE INDEX groups_trash ON groups (trash_at) WHERE trash_at IS NOT NULL;
`

// ErrNewer is returned (wrapped) by Open for a database of a newer program.
var ErrNewer = errors.New("the database was made by a newer version of this program; use that one, or another directory")

// migrate brings the database to the newest version, one transaction for each
// step, so that a killed migration is taken up where it was.
func migrate(c *conn) error {
	have, err := c.version()
	if err != nil {
		return err
	}
	if have > len(migrations) {
		return fmt.Errorf("schema version %d, known up to %d: %w", have, len(migrations), ErrNewer)
	}
	for v := have; v < len(migrations); v++ {
		err := c.transact("BEGIN IMMEDIATE", func(tx *Tx) error {
			if v == 0 {
				if err := c.c.Exec("CREATE TABLE schema_versions (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)"); err != nil {
					return err
				}
			}
			if err := c.c.Exec(migrations[v]); err != nil {
				return err
			}
			return tx.Exec("INSERT INTO schema_versions (version, applied_at) VALUES (?, ?)", v+1, time.Now())
		})
		if err != nil {
			return fmt.Errorf("migrate schema to version %d: %w", v+1, err)
		}
	}
	return nil
}

// version is the number of migrations applied; 0 for an empty file.
func (c *conn) version() (int, error) {
	tx := &Tx{c}
	n, err := tx.Int("SELECT count(*) FROM sqlite_schema WHERE name = 'schema_versions'")
	if err != nil || n == 0 {
		return 0, err
	}
	v, err := tx.Int("SELECT max(version) FROM schema_versions")
	return int(v), err
}

// Setting returns a value set with SetSetting, "" if it was never set.
func (tx *Tx) Setting(name string) (string, error) {
	v, err := tx.Strings("SELECT value FROM settings WHERE name = ?", name)
	if err != nil || len(v) == 0 {
		return "", err
	}
	return v[0], nil
}

// SetSetting stores a value that belongs to the cluster as a whole.
func (tx *Tx) SetSetting(name, value string) error {
	return tx.Exec("INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
}
