-- What the flusher (gateway/worker/flusher.py, record.py) does in one transaction a batch. Times come as
-- microseconds since 1970: bigint arrays are cheap to send, and the multiplication is exact below 2^53.

-- name: create_cursors
INSERT INTO journal_cursors (shard) SELECT generate_series(0, $1::integer - 1) ON CONFLICT (shard) DO NOTHING

-- name: lock_cursor
SELECT last_id FROM journal_cursors WHERE shard = $1 FOR UPDATE SKIP LOCKED

-- name: server
-- The run id of the Redis server in use. Asked for once the cursor is locked, which an acceptance locks too.
SELECT run_id FROM ledger_servers ORDER BY acceptance_id DESC LIMIT 1

-- name: move_cursor
UPDATE journal_cursors SET last_id = $2, updated_at = now() WHERE shard = $1

-- name: ledger
INSERT INTO ledger_entries
    (wallet_id, seq, at, kind, reference, cycle_delta, bundle_delta, prepaid_delta, overage_delta, position, units)
SELECT u.wallet_id, u.seq, timestamptz 'epoch' + u.at_us * interval '1 microsecond', u.kind, u.reference,
       u.cycle_delta, u.bundle_delta, u.prepaid_delta, u.overage_delta, u.position, u.units
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[])
  AS u (wallet_id, seq, at_us, kind, reference, cycle_delta, bundle_delta, prepaid_delta, overage_delta, position,
        units)
ON CONFLICT (wallet_id, seq) DO NOTHING
RETURNING wallet_id, seq

-- name: recorded
SELECT l.wallet_id, l.seq, (extract(epoch FROM l.at) * 1000000)::bigint AS at_us, l.kind, l.reference,
       l.cycle_delta, l.bundle_delta, l.prepaid_delta, l.overage_delta
FROM ledger_entries l
JOIN unnest($1::text[], $2::bigint[]) AS k (wallet_id, seq) ON l.wallet_id = k.wallet_id AND l.seq = k.seq

-- name: wallets
-- `before` is the row as the statement found it: nobody else writes the wallets of a shard whose cursor is locked.
UPDATE wallets w
SET last_seq = greatest(w.last_seq, u.last_seq),
    last_number = greatest(w.last_number, u.last_number),
    cycle_nano = w.cycle_nano + u.cycle_delta,
    bundle_nano = w.bundle_nano + u.bundle_delta,
    prepaid_nano = w.prepaid_nano + u.prepaid_delta,
    overage_nano = w.overage_nano + u.overage_delta
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
  AS u (wallet_id, last_seq, last_number, cycle_delta, bundle_delta, prepaid_delta, overage_delta)
JOIN wallets before ON before.wallet_id = u.wallet_id
WHERE w.wallet_id = u.wallet_id
RETURNING w.wallet_id, before.last_seq AS seq_before

-- name: meters
INSERT INTO wallet_meters (wallet_id, meter_id, units) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
ON CONFLICT (wallet_id, meter_id) DO UPDATE SET units = wallet_meters.units + excluded.units

-- name: spend_days
INSERT INTO spend_key_days (spend_key_id, day, spent_nano, requests, last_used_at)
SELECT u.spend_key_id, u.day, u.spent_nano, u.requests, timestamptz 'epoch' + u.at_ms * interval '1 millisecond'
FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[])
  AS u (spend_key_id, day, spent_nano, requests, at_ms)
ON CONFLICT (spend_key_id, day) DO UPDATE
SET spent_nano = spend_key_days.spent_nano + excluded.spent_nano,
    requests = spend_key_days.requests + excluded.requests,
    last_used_at = greatest(spend_key_days.last_used_at, excluded.last_used_at)

-- name: reset_meters
-- A new cycle has begun.
DELETE FROM wallet_meters WHERE wallet_id = ANY ($1)

-- name: turns
UPDATE turns t
SET applied_at = timestamptz 'epoch' + u.at_us * interval '1 microsecond'
FROM unnest($1::text[], $2::bigint[]) AS u (turn_id, at_us)
WHERE t.turn_id = u.turn_id AND t.applied_at IS NULL

-- name: credits
UPDATE grants g
SET applied_at = timestamptz 'epoch' + u.at_us * interval '1 microsecond'
FROM unnest($1::text[], $2::bigint[]) AS u (grant_id, at_us)
WHERE g.grant_id = u.grant_id AND g.applied_at IS NULL

-- name: index
INSERT INTO request_index (merchant_id, request_id, created_at, fingerprint)
SELECT u.merchant_id, u.request_id, timestamptz 'epoch' + u.created_us * interval '1 microsecond', u.fingerprint
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[])
  AS u (merchant_id, request_id, created_us, fingerprint)
ON CONFLICT (merchant_id, request_id) DO NOTHING
RETURNING merchant_id, request_id

-- name: take_requests
-- Remove rows that a late settlement replaces; what they said is needed for the sums.
DELETE FROM requests r
USING unnest($1::text[], $2::text[]) AS k (merchant_id, request_id), request_index i
WHERE i.merchant_id = k.merchant_id AND i.request_id = k.request_id
  AND r.merchant_id = i.merchant_id AND r.request_id = i.request_id AND r.created_at = i.created_at
RETURNING r.merchant_id, r.request_id, (extract(epoch FROM r.created_at) * 1000000)::bigint AS created_us,
          coalesce(r.connection_id, '') AS connection_id, coalesce(r.meter_id, '') AS meter_id,
          coalesce((r.usage ->> 'input_tokens')::bigint, 0)
              + coalesce((r.usage ->> 'output_tokens')::bigint, 0) AS tokens,
          r.cost_nano, r.fee_nano, r.charge_nano

-- name: requests
INSERT INTO requests
    (merchant_id, request_id, created_at, connection_id, wallet_id, meter_id, meter_version, price_version,
     billing_mode, provider, provider_key_type, model, endpoint, response_id, service_tier, status, ending,
     http_status, streamed, estimated, usage, input_cost_nano, output_cost_nano, cost_nano, fee_nano, charge_nano,
     tier_position, metadata, duration_us, first_byte_us, spend_key_id)
SELECT u.merchant_id, u.request_id, timestamptz 'epoch' + u.created_us * interval '1 microsecond', u.connection_id,
       u.wallet_id, u.meter_id, u.meter_version, u.price_version, u.billing_mode, u.provider, u.provider_key_type,
       u.model, u.endpoint, u.response_id, u.service_tier, u.status, u.ending, u.http_status, u.streamed,
       u.estimated, u.usage::jsonb, u.input_cost_nano, u.output_cost_nano, u.cost_nano, u.fee_nano, u.charge_nano,
       u.tier_position, u.metadata::jsonb, u.duration_us, u.first_byte_us, u.spend_key_id
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::text[],
            $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[],
            $17::text[], $18::integer[], $19::boolean[], $20::boolean[], $21::text[], $22::bigint[], $23::bigint[],
            $24::bigint[], $25::bigint[], $26::bigint[], $27::bigint[], $28::text[], $29::bigint[], $30::bigint[],
            $31::text[])
  AS u (merchant_id, request_id, created_us, connection_id, wallet_id, meter_id, meter_version, price_version,
        billing_mode, provider, provider_key_type, model, endpoint, response_id, service_tier, status, ending,
        http_status, streamed, estimated, usage, input_cost_nano, output_cost_nano, cost_nano, fee_nano, charge_nano,
        tier_position, metadata, duration_us, first_byte_us, spend_key_id)

-- name: hourly
-- The caller sorts by the key: two flushers that add to the same rows then never wait for each other in a circle.
INSERT INTO usage_hourly
    (merchant_id, hour, connection_id, meter_id, requests, tokens, cost_nano, fee_nano, charge_nano)
SELECT u.merchant_id, timestamptz 'epoch' + u.hour_us * interval '1 microsecond', u.connection_id, u.meter_id,
       u.requests, u.tokens, u.cost_nano, u.fee_nano, u.charge_nano
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::bigint[])
  AS u (merchant_id, hour_us, connection_id, meter_id, requests, tokens, cost_nano, fee_nano, charge_nano)
ON CONFLICT (merchant_id, hour, connection_id, meter_id) DO UPDATE
SET requests = usage_hourly.requests + excluded.requests,
    tokens = usage_hourly.tokens + excluded.tokens,
    cost_nano = usage_hourly.cost_nano + excluded.cost_nano,
    fee_nano = usage_hourly.fee_nano + excluded.fee_nano,
    charge_nano = usage_hourly.charge_nano + excluded.charge_nano

-- name: rejects
INSERT INTO flush_rejects (shard, number, entry, reason)
SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bytea[], $4::text[])
