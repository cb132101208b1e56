-- Credits that no check has found paid, by their age: few, as long as checks are done. Without it each look for them would
-- read the whole table.
CREATE INDEX points_credits_unverified ON points_credits (credited_at)
    WHERE verified_at IS NULL AND state = 'credited';
