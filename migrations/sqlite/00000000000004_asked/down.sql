ALTER TABLE points_credits DROP COLUMN asked_at;
