-- Messages that are to be published, written in the transaction that makes them true: by pointsd, and by any other program
-- that shares the database (docs/guides/events.md). A row is deleted when the broker has confirmed it. Nobody but the relay
-- writes the last three columns.

CREATE TABLE points_outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id  text NOT NULL DEFAULT gen_random_uuid()::text
                CONSTRAINT points_outbox_message_id CHECK (octet_length(message_id) BETWEEN 1 AND 255),
    exchange    text NOT NULL CONSTRAINT points_outbox_exchange CHECK (octet_length(exchange) <= 255),
    routing_key text NOT NULL DEFAULT '' CONSTRAINT points_outbox_routing_key CHECK (octet_length(routing_key) <= 255),
    -- Rows with the same key are published in the order of their ids; without one a row waits for no other.
    key         text COLLATE "C" CONSTRAINT points_outbox_key CHECK (octet_length(key) <= 1024),
    headers     jsonb NOT NULL DEFAULT '{}'
                CONSTRAINT points_outbox_headers CHECK (jsonb_typeof(headers) = 'object'),
    body        text NOT NULL CONSTRAINT points_outbox_body CHECK (octet_length(body) <= 1048576),
    created_at  timestamptz NOT NULL DEFAULT now() CONSTRAINT points_outbox_created_at CHECK (isfinite(created_at)),
    attempts    integer NOT NULL DEFAULT 0,
    next_try_at timestamptz CONSTRAINT points_outbox_next_try_at CHECK (isfinite(next_try_at)),
    last_error  text
);

CREATE INDEX points_outbox_fresh ON points_outbox (id) WHERE next_try_at IS NULL;
CREATE INDEX points_outbox_held ON points_outbox (next_try_at) WHERE next_try_at IS NOT NULL;
CREATE INDEX points_outbox_held_keys ON points_outbox (key, id) WHERE next_try_at IS NOT NULL;
