package store

// The tables, attributes in the order in which the API's back end lists them
// (arvados-api.md sections 9.1, 11.1, 12, 14 and the captures). A change here
// needs a migration.

func heading(more ...Attr) []Attr {
	return append([]Attr{
		{Name: "uuid"}, {Name: "owner_uuid"}, {Name: "created_at", Type: Time},
		{Name: "modified_by_user_uuid"}, {Name: "modified_at", Type: Time},
	}, more...)
}

// Users are the people and the system user.
var Users = NewTable("users", heading(
	Attr{Name: "email"}, Attr{Name: "username"},
	Attr{Name: "first_name"}, Attr{Name: "last_name"}, Attr{Name: "identity_url"},
	Attr{Name: "is_active", Type: Bool}, Attr{Name: "is_admin", Type: Bool},
	Attr{Name: "prefs", Type: Hash},
)...)

// Tokens are what clients authenticate with.
var Tokens = NewTable("api_client_authorizations", heading(
	Attr{Name: "api_token", Secret: true},
	Attr{Name: "created_by_ip_address"}, Attr{Name: "expires_at", Type: Time},
	Attr{Name: "last_used_at", Type: Time}, Attr{Name: "last_used_by_ip_address"},
	Attr{Name: "scopes", Type: Array},
)...)

// Groups are projects.
var Groups = NewTable("groups", heading(
	Attr{Name: "name"}, Attr{Name: "group_class"}, Attr{Name: "description"},
	Attr{Name: "properties", Type: Hash},
	Attr{Name: "delete_at", Type: Time}, Attr{Name: "trash_at", Type: Time}, Attr{Name: "is_trashed", Type: Bool},
	Attr{Name: "frozen_by_uuid"},
)...)

// Links tie a name to a record: here, image names to image collections.
var Links = NewTable("links", heading(
	Attr{Name: "link_class"}, Attr{Name: "name"}, Attr{Name: "head_uuid"}, Attr{Name: "tail_uuid"},
	Attr{Name: "properties", Type: Hash},
)...)

// Logs are events that dispatchers report.
var Logs = NewTable("logs", heading(
	Attr{Name: "id", Type: Int},
	Attr{Name: "object_uuid"}, Attr{Name: "object_owner_uuid"},
	Attr{Name: "event_at", Type: Time}, Attr{Name: "event_type"}, Attr{Name: "summary"},
	Attr{Name: "properties", Type: Hash},
)...)

// Collections hold manifests, without signatures.
var Collections = NewTable("collections", heading(
	Attr{Name: "name"}, Attr{Name: "description"}, Attr{Name: "properties", Type: Hash},
	Attr{Name: "portable_data_hash"}, Attr{Name: "manifest_text"},
	Attr{Name: "replication_desired", Type: Int}, Attr{Name: "replication_confirmed", Type: Int},
	Attr{Name: "replication_confirmed_at", Type: Time},
	Attr{Name: "storage_classes_desired", Type: Array}, Attr{Name: "storage_classes_confirmed", Type: Array},
	Attr{Name: "storage_classes_confirmed_at", Type: Time},
	Attr{Name: "delete_at", Type: Time}, Attr{Name: "trash_at", Type: Time}, Attr{Name: "is_trashed", Type: Bool},
	Attr{Name: "version", Type: Int}, Attr{Name: "current_version_uuid"}, Attr{Name: "preserve_version", Type: Bool},
	Attr{Name: "file_count", Type: Int}, Attr{Name: "file_size_total", Type: Int},
)...)

// Containers are the runs.
var Containers = NewTable("containers", heading(
	Attr{Name: "command", Type: Array}, Attr{Name: "container_image"}, Attr{Name: "cwd"},
	Attr{Name: "environment", Type: Hash}, Attr{Name: "exit_code", Type: Int}, Attr{Name: "finished_at", Type: Time},
	Attr{Name: "locked_by_uuid"}, Attr{Name: "log"}, Attr{Name: "mounts", Type: Hash}, Attr{Name: "output"},
	Attr{Name: "output_path"}, Attr{Name: "output_glob", Type: Array}, Attr{Name: "priority", Type: Int},
	Attr{Name: "progress", Type: Float}, Attr{Name: "runtime_constraints", Type: Hash},
	Attr{Name: "runtime_status", Type: Hash}, Attr{Name: "started_at", Type: Time}, Attr{Name: "state"},
	Attr{Name: "auth_uuid"}, Attr{Name: "scheduling_parameters", Type: Hash}, Attr{Name: "runtime_user_uuid"},
	Attr{Name: "runtime_auth_scopes", Type: Array}, Attr{Name: "lock_count", Type: Int}, Attr{Name: "gateway_address"},
	Attr{Name: "interactive_session_started", Type: Bool}, Attr{Name: "output_storage_classes", Type: Array},
	Attr{Name: "output_properties", Type: Hash}, Attr{Name: "cost", Type: Float}, Attr{Name: "subrequests_cost", Type: Float},
	Attr{Name: "service", Type: Bool}, Attr{Name: "published_ports", Type: Hash},
	Attr{Name: "secret_mounts", Type: Hash, Secret: true}, Attr{Name: "runtime_token", Secret: true},
	// Outlives the secrets themselves, for the comparison with later requests.
	// Null for containers from before it existed.
	Attr{Name: "secret_mounts_md5", Secret: true},
)...)

// ContainerRequests are what users submit.
var ContainerRequests = NewTable("container_requests", heading(
	Attr{Name: "name"}, Attr{Name: "description"}, Attr{Name: "properties", Type: Hash}, Attr{Name: "state"},
	Attr{Name: "requesting_container_uuid"}, Attr{Name: "container_uuid"},
	Attr{Name: "container_count", Type: Int}, Attr{Name: "container_count_max", Type: Int},
	Attr{Name: "command", Type: Array}, Attr{Name: "container_image"}, Attr{Name: "cwd"},
	Attr{Name: "environment", Type: Hash}, Attr{Name: "mounts", Type: Hash}, Attr{Name: "output_path"},
	Attr{Name: "output_glob", Type: Array}, Attr{Name: "output_name"}, Attr{Name: "output_ttl", Type: Int},
	Attr{Name: "output_storage_classes", Type: Array}, Attr{Name: "output_properties", Type: Hash},
	Attr{Name: "priority", Type: Int}, Attr{Name: "runtime_constraints", Type: Hash},
	Attr{Name: "scheduling_parameters", Type: Hash}, Attr{Name: "use_existing", Type: Bool},
	Attr{Name: "expires_at", Type: Time}, Attr{Name: "filters", Type: Array},
	Attr{Name: "log_uuid"}, Attr{Name: "output_uuid"}, Attr{Name: "cumulative_cost", Type: Float},
	Attr{Name: "service", Type: Bool}, Attr{Name: "published_ports", Type: Hash},
	Attr{Name: "secret_mounts", Type: Hash, Secret: true}, Attr{Name: "runtime_token", Secret: true},
)...)

// Tables are all tables of records.
var Tables = []*Table{Users, Tokens, Groups, Links, Logs, Collections, Containers, ContainerRequests}
