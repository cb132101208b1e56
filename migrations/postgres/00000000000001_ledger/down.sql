DROP TABLE points_probe;
DROP TABLE points_balances;
DROP TABLE points_adjustments;
DROP TABLE points_credits;
