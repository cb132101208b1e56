-- Identifiers compare by their bytes: a collation of the operating system's may change under a unique index.

CREATE TABLE points_credits (
    payment_id  text COLLATE "C" PRIMARY KEY,
    user_id     text COLLATE "C" NOT NULL,
    points      bigint NOT NULL CONSTRAINT points_credits_positive CHECK (points > 0),
    credited_at timestamptz NOT NULL DEFAULT now(),
    verified_at timestamptz,
    state       text NOT NULL DEFAULT 'credited'
                CONSTRAINT points_credits_state CHECK (state IN ('credited', 'reversed'))
);

CREATE TABLE points_adjustments (
    payment_id text COLLATE "C" NOT NULL REFERENCES points_credits,
    seq        integer NOT NULL CONSTRAINT points_adjustments_seq CHECK (seq > 0),
    user_id    text COLLATE "C" NOT NULL,
    kind       text NOT NULL CONSTRAINT points_adjustments_kind CHECK (kind IN ('reversal', 'reinstatement')),
    points     bigint NOT NULL,
    reason     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (payment_id, seq)
);

CREATE TABLE points_balances (
    user_id    text COLLATE "C" PRIMARY KEY,
    balance    bigint NOT NULL CONSTRAINT points_balances_range
               CHECK (balance BETWEEN -9000000000000000000 AND 9000000000000000000),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- One row, written by the daemon to learn whether an outage is over.
CREATE TABLE points_probe (
    id        integer PRIMARY KEY CONSTRAINT points_probe_single CHECK (id = 1),
    probed_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO points_probe (id) VALUES (1);
