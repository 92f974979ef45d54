-- Usage reports over millions of requests: sums by meter, and the hours of one customer.

CREATE INDEX usage_hourly_connection ON usage_hourly (merchant_id, connection_id, hour, meter_id);

-- The sums of usage_hourly over all connections. Kept by triggers, so that whoever writes usage_hourly, of whatever
-- version, keeps this too.
CREATE TABLE usage_by_meter (
    merchant_id text NOT NULL,
    meter_id    text NOT NULL,                       -- "" where there is none
    hour        timestamptz NOT NULL,
    requests    bigint NOT NULL,
    tokens      bigint NOT NULL,
    cost_nano   bigint NOT NULL,
    fee_nano    bigint NOT NULL,
    charge_nano bigint NOT NULL,
    PRIMARY KEY (merchant_id, meter_id, hour)
);

-- Writers add to the same rows, and no order of rows is common to the statements of their transactions: one writer at
-- a time, until it commits. There are few, and this is the last that the flusher does.
CREATE FUNCTION usage_by_meter_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(2818, 10);         -- 0x0B02, this migration
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO usage_by_meter AS kept
        SELECT merchant_id, meter_id, hour, sum(requests), sum(tokens), sum(cost_nano), sum(fee_nano), sum(charge_nano)
        FROM added GROUP BY merchant_id, meter_id, hour
        ON CONFLICT (merchant_id, meter_id, hour) DO UPDATE
        SET requests = kept.requests + excluded.requests, tokens = kept.tokens + excluded.tokens,
            cost_nano = kept.cost_nano + excluded.cost_nano, fee_nano = kept.fee_nano + excluded.fee_nano,
            charge_nano = kept.charge_nano + excluded.charge_nano;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        UPDATE usage_by_meter kept
        SET requests = kept.requests - gone.requests, tokens = kept.tokens - gone.tokens,
            cost_nano = kept.cost_nano - gone.cost_nano, fee_nano = kept.fee_nano - gone.fee_nano,
            charge_nano = kept.charge_nano - gone.charge_nano
        FROM (
            SELECT merchant_id, meter_id, hour, sum(requests) AS requests, sum(tokens) AS tokens,
                   sum(cost_nano) AS cost_nano, sum(fee_nano) AS fee_nano, sum(charge_nano) AS charge_nano
            FROM removed GROUP BY merchant_id, meter_id, hour
        ) gone
        WHERE kept.merchant_id = gone.merchant_id AND kept.meter_id = gone.meter_id AND kept.hour = gone.hour;
    END IF;
    RETURN NULL;
END $$;

LOCK TABLE usage_hourly IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO usage_by_meter
SELECT merchant_id, meter_id, hour, sum(requests), sum(tokens), sum(cost_nano), sum(fee_nano), sum(charge_nano)
FROM usage_hourly GROUP BY merchant_id, meter_id, hour;
CREATE TRIGGER usage_by_meter_insert AFTER INSERT ON usage_hourly
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION usage_by_meter_follow();
CREATE TRIGGER usage_by_meter_update AFTER UPDATE ON usage_hourly
    REFERENCING NEW TABLE AS added OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION usage_by_meter_follow();
CREATE TRIGGER usage_by_meter_delete AFTER DELETE ON usage_hourly
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION usage_by_meter_follow();
