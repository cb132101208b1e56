DROP TABLE points_outbox;
