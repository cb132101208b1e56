-- Times are RFC 3339 in UTC. STRICT keeps a balance that leaves 64 bits from turning into a floating-point number.

CREATE TABLE points_credits (
    payment_id  TEXT NOT NULL PRIMARY KEY,
    user_id     TEXT NOT NULL,
    points      INTEGER NOT NULL CONSTRAINT points_credits_positive CHECK (points > 0),
    credited_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    verified_at TEXT,
    state       TEXT NOT NULL DEFAULT 'credited'
                CONSTRAINT points_credits_state CHECK (state IN ('credited', 'reversed'))
) STRICT, WITHOUT ROWID;

CREATE TABLE points_adjustments (
    payment_id TEXT NOT NULL REFERENCES points_credits,
    seq        INTEGER NOT NULL CONSTRAINT points_adjustments_seq CHECK (seq > 0),
    user_id    TEXT NOT NULL,
    kind       TEXT NOT NULL CONSTRAINT points_adjustments_kind CHECK (kind IN ('reversal', 'reinstatement')),
    points     INTEGER NOT NULL,
    reason     TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (payment_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE points_balances (
    user_id    TEXT NOT NULL PRIMARY KEY,
    balance    INTEGER NOT NULL CONSTRAINT points_balances_range
               CHECK (balance BETWEEN -9000000000000000000 AND 9000000000000000000),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT, WITHOUT ROWID;

-- One row, written by the daemon to learn whether an outage is over.
CREATE TABLE points_probe (
    id        INTEGER PRIMARY KEY CONSTRAINT points_probe_single CHECK (id = 1),
    probed_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
INSERT INTO points_probe (id) VALUES (1);
