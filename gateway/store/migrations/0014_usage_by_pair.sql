-- Usage reports of one metadata pair over millions of requests: sums of `requests` by pair.

-- The pairs that are summed: the first 1,000 values of a key and 20,000 pairs of a merchant. A pair is admitted with
-- the first row that has it and stays, and a limit that was reached stays reached: the sums of what stands here are
-- complete, what does not stand here has none. A key whose values never repeat costs 1,000 rows.
CREATE TABLE metadata_pairs (
    pair_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    merchant_id text NOT NULL,
    key         text NOT NULL,
    value       text NOT NULL,
    UNIQUE (merchant_id, key, value)
);

CREATE TABLE usage_by_pair (
    pair_id     bigint NOT NULL,
    meter_id    text NOT NULL,                       -- "" where there is none; "*": the sum of all
    hour        timestamptz NOT NULL,
    requests    bigint NOT NULL,
    tokens      bigint NOT NULL,
    cost_nano   bigint NOT NULL,
    fee_nano    bigint NOT NULL,
    charge_nano bigint NOT NULL,
    PRIMARY KEY (pair_id, meter_id, hour)
);

-- What a filter can ask for. No index takes longer texts, and the gateway accepts none.
CREATE FUNCTION metadata_texts(metadata jsonb) RETURNS TABLE (key text, value text) LANGUAGE sql IMMUTABLE AS $$
    SELECT key, value #>> '{}'
    FROM jsonb_each(CASE WHEN jsonb_typeof(metadata) = 'object' THEN metadata ELSE '{}' END)
    WHERE jsonb_typeof(value) = 'string' AND octet_length(key) <= 255 AND octet_length(value #>> '{}') <= 1020
$$;

-- Admit pairs of a key, as far as there is room.
CREATE FUNCTION metadata_pairs_admit(merchant text, pair_key text, given text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    of_key integer := (SELECT count(*) FROM metadata_pairs WHERE merchant_id = merchant AND key = pair_key);
BEGIN
    IF of_key < 1000 THEN
        INSERT INTO metadata_pairs (merchant_id, key, value)
        SELECT merchant, pair_key, value FROM unnest(given) value
        LIMIT least(1000 - of_key, 20000 - (SELECT count(*) FROM metadata_pairs WHERE merchant_id = merchant));
    END IF;
END $$;

-- Kept by triggers, so that whoever writes `requests`, of whatever version, keeps this too. One writer at a time, until
-- it commits; it is the turn of usage_hourly (0012), so that nobody waits for one of two with the other in hand. Pairs
-- are looked up by subqueries: whatever the table was like when a plan was made, they use the whole index.
CREATE FUNCTION usage_by_pair_follow() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    concerned boolean := false;
    move CONSTANT text := $sql$
        WITH given AS MATERIALIZED (
            SELECT t.merchant_id, p.key, p.value, date_trunc('hour', t.created_at, 'UTC') AS hour,
                   coalesce(t.meter_id, '') AS meter_id, $1 * count(*) AS requests,
                   $1 * sum(coalesce((t.usage ->> 'input_tokens')::bigint, 0)
                            + coalesce((t.usage ->> 'output_tokens')::bigint, 0)) AS tokens,
                   $1 * sum(t.cost_nano) AS cost, $1 * sum(t.fee_nano) AS fee, $1 * sum(t.charge_nano) AS charge
            FROM %I t CROSS JOIN metadata_texts(t.metadata) p
            GROUP BY 1, 2, 3, 4, 5
        ), known AS MATERIALIZED (
            SELECT *, (SELECT m.pair_id FROM metadata_pairs m
                       WHERE m.merchant_id = g.merchant_id AND m.key = g.key AND m.value = g.value) AS pair_id
            FROM given g
        )
        INSERT INTO usage_by_pair AS kept
        SELECT pair_id, coalesce(meter_id, '*'), hour, sum(requests), sum(tokens), sum(cost), sum(fee), sum(charge)
        FROM known WHERE pair_id IS NOT NULL
        GROUP BY GROUPING SETS ((pair_id, meter_id, hour), (pair_id, hour))
        ON CONFLICT (pair_id, meter_id, hour) DO UPDATE
        SET requests = kept.requests + excluded.requests, tokens = kept.tokens + excluded.tokens,
            cost_nano = kept.cost_nano + excluded.cost_nano, fee_nano = kept.fee_nano + excluded.fee_nano,
            charge_nano = kept.charge_nano + excluded.charge_nano $sql$;
BEGIN
    IF TG_OP <> 'DELETE' THEN
        concerned := EXISTS (SELECT FROM added WHERE metadata <> '{}');
    END IF;
    IF TG_OP <> 'INSERT' AND NOT concerned THEN
        concerned := EXISTS (SELECT FROM removed WHERE metadata <> '{}');
    END IF;
    IF NOT concerned THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(2818, 10);         -- as usage_hourly_in_turn takes it
    IF TG_OP <> 'INSERT' THEN
        EXECUTE format(move, 'removed') USING -1;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM metadata_pairs_admit(merchant_id, key, array_agg(value))
        FROM (SELECT DISTINCT t.merchant_id, p.key, p.value FROM added t CROSS JOIN metadata_texts(t.metadata) p) g
        WHERE (SELECT m.pair_id FROM metadata_pairs m
               WHERE m.merchant_id = g.merchant_id AND m.key = g.key AND m.value = g.value) IS NULL
        GROUP BY merchant_id, key;
        EXECUTE format(move, 'added') USING 1;
    END IF;
    RETURN NULL;
END $$;

-- What there is already is not summed up, which would take a minute a million rows: reports read the hours before these
-- from the rows. A merchant that is not here had none.
CREATE TABLE usage_by_pair_since (
    merchant_id text PRIMARY KEY,
    hour        timestamptz NOT NULL
);
LOCK TABLE requests IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO usage_by_pair_since
SELECT m.merchant_id, date_trunc('hour', newest.created_at, 'UTC') + interval '1 hour'
FROM merchants m CROSS JOIN LATERAL (
    SELECT created_at FROM requests r WHERE r.merchant_id = m.merchant_id
    ORDER BY created_at DESC, request_id DESC LIMIT 1
) newest;
CREATE TRIGGER usage_by_pair_insert AFTER INSERT ON requests
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION usage_by_pair_follow();
CREATE TRIGGER usage_by_pair_update AFTER UPDATE ON requests
    REFERENCING NEW TABLE AS added OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION usage_by_pair_follow();
CREATE TRIGGER usage_by_pair_delete AFTER DELETE ON requests
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION usage_by_pair_follow();
