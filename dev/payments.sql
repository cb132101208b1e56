-- The payments behind tests/fixtures/payments.jsonl, as a shop's own table might say them. There is none with the id
-- 202002201104: that one's transaction was rolled back.
CREATE TABLE IF NOT EXISTS shop_payments (id TEXT PRIMARY KEY, status TEXT NOT NULL, buyer TEXT NOT NULL) STRICT;
INSERT OR IGNORE INTO shop_payments VALUES
    ('202002201101', 'TRADE_SUCCESS', '1101'),
    ('202002201102', 'WAIT_BUYER_PAY', '1102'),
    ('202002201103', 'TRADE_CLOSED', '1101'),
    ('98765432109876543210', 'TRADE_SUCCESS', '用户一');

-- One payment cannot be credited at first, for a reason that passes.
CREATE TRIGGER not_yet BEFORE INSERT ON points_credits
    WHEN NEW.payment_id = '98765432109876543210'
     AND NOT EXISTS (SELECT 1 FROM points_credits WHERE payment_id = NEW.payment_id)
    BEGIN SELECT RAISE(ABORT, 'this payment cannot be credited yet'); END;
