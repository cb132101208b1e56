-- Messages that are to be published, written in the transaction that makes them true: by pointsd, and by any other program
-- that shares the file (docs/guides/events.md). A row is deleted when the broker has confirmed it. Nobody but the relay writes
-- the last three columns.

CREATE TABLE points_outbox (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id  TEXT NOT NULL DEFAULT (lower(hex(randomblob(16))))
                CONSTRAINT points_outbox_message_id CHECK (length(CAST(message_id AS BLOB)) BETWEEN 1 AND 255),
    exchange    TEXT NOT NULL CONSTRAINT points_outbox_exchange CHECK (length(CAST(exchange AS BLOB)) <= 255),
    routing_key TEXT NOT NULL DEFAULT '' CONSTRAINT points_outbox_routing_key CHECK (length(CAST(routing_key AS BLOB)) <= 255),
    -- Rows with the same key are published in the order of their ids; without one a row waits for no other.
    key         TEXT CONSTRAINT points_outbox_key CHECK (length(CAST(key AS BLOB)) <= 1024),
    headers     TEXT NOT NULL DEFAULT '{}'
                CONSTRAINT points_outbox_headers CHECK (json_valid(headers) AND json_type(headers) = 'object'),
    body        TEXT NOT NULL CONSTRAINT points_outbox_body CHECK (length(CAST(body AS BLOB)) <= 1048576),
    created_at  TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
                CONSTRAINT points_outbox_created_at CHECK (julianday(created_at) IS NOT NULL),
    attempts    INTEGER NOT NULL DEFAULT 0,
    next_try_at TEXT CONSTRAINT points_outbox_next_try_at CHECK (next_try_at IS NULL OR julianday(next_try_at) IS NOT NULL),
    last_error  TEXT
) STRICT;

CREATE INDEX points_outbox_fresh ON points_outbox (id) WHERE next_try_at IS NULL;
CREATE INDEX points_outbox_held ON points_outbox (next_try_at) WHERE next_try_at IS NOT NULL;
CREATE INDEX points_outbox_held_keys ON points_outbox (key, id) WHERE next_try_at IS NOT NULL;
