-- Since when a check has parked a credit for a person to decide; cleared when it is verified or reversed.
ALTER TABLE points_credits ADD COLUMN asked_at TEXT;
