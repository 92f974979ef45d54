-- Usage reports of one customer over a year: its sums over all meters, and its hours of one meter.

-- The sums of usage_hourly over all meters. Kept by triggers, as usage_by_meter is.
CREATE TABLE usage_by_customer (
    merchant_id   text NOT NULL,
    connection_id text NOT NULL,                     -- "" where there is none
    hour          timestamptz NOT NULL,
    requests      bigint NOT NULL,
    tokens        bigint NOT NULL,
    cost_nano     bigint NOT NULL,
    fee_nano      bigint NOT NULL,
    charge_nano   bigint NOT NULL,
    PRIMARY KEY (merchant_id, connection_id, hour)
);

-- Under the lock of the writers of usage_hourly (0012).
CREATE FUNCTION usage_by_customer_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO usage_by_customer AS kept
        SELECT merchant_id, connection_id, hour, sum(requests), sum(tokens), sum(cost_nano), sum(fee_nano),
               sum(charge_nano)
        FROM added GROUP BY merchant_id, connection_id, hour
        ON CONFLICT (merchant_id, connection_id, hour) DO UPDATE
        SET requests = kept.requests + excluded.requests, tokens = kept.tokens + excluded.tokens,
            cost_nano = kept.cost_nano + excluded.cost_nano, fee_nano = kept.fee_nano + excluded.fee_nano,
            charge_nano = kept.charge_nano + excluded.charge_nano;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        UPDATE usage_by_customer kept
        SET requests = kept.requests - gone.requests, tokens = kept.tokens - gone.tokens,
            cost_nano = kept.cost_nano - gone.cost_nano, fee_nano = kept.fee_nano - gone.fee_nano,
            charge_nano = kept.charge_nano - gone.charge_nano
        FROM (
            SELECT merchant_id, connection_id, hour, sum(requests) AS requests, sum(tokens) AS tokens,
                   sum(cost_nano) AS cost_nano, sum(fee_nano) AS fee_nano, sum(charge_nano) AS charge_nano
            FROM removed GROUP BY merchant_id, connection_id, hour
        ) gone
        WHERE kept.merchant_id = gone.merchant_id AND kept.connection_id = gone.connection_id AND kept.hour = gone.hour;
    END IF;
    RETURN NULL;
END $$;

LOCK TABLE usage_hourly IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO usage_by_customer
SELECT merchant_id, connection_id, hour, sum(requests), sum(tokens), sum(cost_nano), sum(fee_nano), sum(charge_nano)
FROM usage_hourly GROUP BY merchant_id, connection_id, hour;
CREATE TRIGGER usage_by_customer_insert AFTER INSERT ON usage_hourly
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION usage_by_customer_follow();
CREATE TRIGGER usage_by_customer_update AFTER UPDATE ON usage_hourly
    REFERENCING NEW TABLE AS added OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION usage_by_customer_follow();
CREATE TRIGGER usage_by_customer_delete AFTER DELETE ON usage_hourly
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION usage_by_customer_follow();

-- What is left to usage_hourly: one customer on one meter.
CREATE INDEX usage_hourly_customer_meter ON usage_hourly (merchant_id, connection_id, meter_id, hour);
DROP INDEX usage_hourly_connection;
