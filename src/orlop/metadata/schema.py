"""The schema of `meta.db`, as migrations: step n brings a database of version n - 1 to version n.

Times are nanoseconds since 1970. `labels`, `annotations` and `extensions` are JSON objects (extensions: by key an
array of type URL and base64 value). A typed value is two columns, `*_url` (NULL: absent) and `*_value`. Every table
has a row id, since the collector follows changes by it.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE namespaces (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        labels TEXT NOT NULL DEFAULT '{}',
        -- Whether one was ever made here: what containerd says of a missing one depends on it.
        had_containers INTEGER NOT NULL DEFAULT 0,
        had_sandboxes INTEGER NOT NULL DEFAULT 0
    ) STRICT;

    CREATE TABLE containers (
        row INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        labels TEXT NOT NULL,
        image TEXT NOT NULL,
        runtime_name TEXT NOT NULL,
        runtime_options_url TEXT,
        runtime_options_value BLOB,
        spec_url TEXT,
        spec_value BLOB,
        snapshotter TEXT NOT NULL,
        snapshot_key TEXT NOT NULL,
        sandbox TEXT NOT NULL,
        extensions TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        UNIQUE (namespace, id)
    ) STRICT;

    CREATE TABLE images (
        row INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        labels TEXT NOT NULL,
        media_type TEXT NOT NULL,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        annotations TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        UNIQUE (namespace, name)
    ) STRICT;

    CREATE TABLE blobs (
        row INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        UNIQUE (namespace, digest)
    ) STRICT;
    CREATE INDEX blobs_by_digest ON blobs (digest);

    -- The backend knows an ingest as "<namespace>/<row>/<ref>". `expected` is set where it stands for a blob that
    -- another namespace has; `expires_at` is NULL where a lease holds it.
    CREATE TABLE ingests (
        row INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        ref TEXT NOT NULL,
        expected TEXT NOT NULL,
        expires_at INTEGER,
        UNIQUE (namespace, ref)
    ) STRICT;

    -- The driver knows a snapshot as "<namespace>/<number>/<key>", kept in `backend`. The number is the row that
    -- it was made under; what is committed keeps that of its active, though its row is a new one.
    CREATE TABLE snapshots (
        row INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        snapshotter TEXT NOT NULL,
        name TEXT NOT NULL,
        parent TEXT NOT NULL,
        backend TEXT NOT NULL,
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        UNIQUE (namespace, snapshotter, name)
    ) STRICT;
    CREATE INDEX snapshots_by_parent ON snapshots (namespace, snapshotter, parent);
    CREATE UNIQUE INDEX snapshots_by_backend ON snapshots (snapshotter, backend);

    CREATE TABLE leases (
        row INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        UNIQUE (namespace, id)
    ) STRICT;

    -- `type` as on the wire: content, ingests, images, snapshots/<snapshotter>.
    CREATE TABLE lease_resources (
        row INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        lease TEXT NOT NULL,
        type TEXT NOT NULL,
        id TEXT NOT NULL,
        UNIQUE (namespace, lease, type, id)
    ) STRICT;
    CREATE INDEX lease_resources_by_id ON lease_resources (namespace, type, id);

    CREATE TABLE sandboxes (
        row INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        runtime_name TEXT NOT NULL,
        runtime_options_url TEXT,
        runtime_options_value BLOB,
        spec_url TEXT,
        spec_value BLOB,
        labels TEXT NOT NULL,
        extensions TEXT NOT NULL,
        sandboxer TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        UNIQUE (namespace, id)
    ) STRICT;
    """,
    """
    -- `active` and `system` (JSON) are NULL while an activation is being made; its mounts lie in the directory `row`.
    CREATE TABLE mounts (
        row INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        lease TEXT NOT NULL,
        labels TEXT NOT NULL,
        active TEXT,
        system TEXT,
        created_at INTEGER NOT NULL,
        UNIQUE (namespace, name)
    ) STRICT;
    """,
)
