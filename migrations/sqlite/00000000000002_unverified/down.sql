DROP INDEX points_credits_unverified;
