-- What `obol audit` (gateway/audit.py) compares. Each statement sees one snapshot, and the flusher writes entries,
-- wallets, rows and sums in one transaction, so running traffic makes no difference here.

-- name: wallets_page
SELECT wallet_id, shard, merchant_id FROM wallets WHERE wallet_id > $1 ORDER BY wallet_id LIMIT $2

-- name: wallets
-- Row and ledger of some wallets. `at_*`: the ledger up to the sequence number that Redis showed ($2).
SELECT w.wallet_id, w.last_seq, w.cycle_nano, w.bundle_nano, w.prepaid_nano, w.overage_nano, e.*
FROM unnest($1::text[], $2::bigint[]) AS k (wallet_id, seq)
JOIN wallets w ON w.wallet_id = k.wallet_id
CROSS JOIN LATERAL (
    SELECT count(*) AS entries, coalesce(max(l.seq), 0) AS max_seq,
           coalesce(sum(l.cycle_delta), 0)::bigint AS cycle_sum,
           coalesce(sum(l.bundle_delta), 0)::bigint AS bundle_sum,
           coalesce(sum(l.prepaid_delta), 0)::bigint AS prepaid_sum,
           coalesce(sum(l.overage_delta), 0)::bigint AS overage_sum,
           coalesce(sum(l.cycle_delta) FILTER (WHERE l.seq <= k.seq), 0)::bigint AS at_cycle,
           coalesce(sum(l.bundle_delta) FILTER (WHERE l.seq <= k.seq), 0)::bigint AS at_bundle,
           coalesce(sum(l.prepaid_delta) FILTER (WHERE l.seq <= k.seq), 0)::bigint AS at_prepaid,
           coalesce(sum(l.overage_delta) FILTER (WHERE l.seq <= k.seq), 0)::bigint AS at_overage
    FROM ledger_entries l WHERE l.wallet_id = w.wallet_id
) e

-- name: units
SELECT wallet_id, jsonb_object_agg(meter_id, units) AS units FROM wallet_meters WHERE wallet_id = ANY($1)
GROUP BY wallet_id

-- name: counts
SELECT (SELECT count(*) FROM request_index) AS indexed, (SELECT count(*) FROM requests) AS requests,
       (SELECT count(*) FROM ledger_entries) AS entries, (SELECT count(*) FROM usage_hourly) AS hours,
       (SELECT count(*) FROM flush_rejects) AS rejects

-- name: charges
SELECT coalesce(l.wallet_id, r.wallet_id) AS wallet_id, coalesce(l.debits, 0)::bigint AS debits,
       coalesce(r.charges, 0)::bigint AS charges
FROM (SELECT wallet_id, sum(overage_delta - cycle_delta - bundle_delta - prepaid_delta) AS debits
      FROM ledger_entries WHERE kind IN ('call', 'report', 'expired', 'late') GROUP BY wallet_id) l
FULL JOIN (SELECT wallet_id, sum(charge_nano) AS charges FROM requests GROUP BY wallet_id) r
  ON r.wallet_id = l.wallet_id
WHERE coalesce(l.debits, 0) <> coalesce(r.charges, 0)
ORDER BY 1

-- name: hours
SELECT merchant_id, hour, connection_id, meter_id,
       concat_ws(' ', coalesce(r.requests, 0), coalesce(r.tokens, 0), coalesce(r.cost, 0), coalesce(r.fee, 0),
                 coalesce(r.charge, 0)) AS expected,
       concat_ws(' ', coalesce(u.requests, 0), coalesce(u.tokens, 0), coalesce(u.cost_nano, 0),
                 coalesce(u.fee_nano, 0), coalesce(u.charge_nano, 0)) AS found
FROM (SELECT merchant_id, date_trunc('hour', created_at, 'UTC') AS hour, coalesce(connection_id, '') AS connection_id,
             coalesce(meter_id, '') AS meter_id, count(*) AS requests,
             sum(coalesce((usage ->> 'input_tokens')::bigint, 0) + coalesce((usage ->> 'output_tokens')::bigint, 0))
                 AS tokens,
             sum(cost_nano) AS cost, sum(fee_nano) AS fee, sum(charge_nano) AS charge
      FROM requests GROUP BY 1, 2, 3, 4) r
FULL JOIN usage_hourly u USING (merchant_id, hour, connection_id, meter_id)
WHERE (coalesce(r.requests, 0), coalesce(r.tokens, 0), coalesce(r.cost, 0), coalesce(r.fee, 0), coalesce(r.charge, 0))
   <> (coalesce(u.requests, 0), coalesce(u.tokens, 0), coalesce(u.cost_nano, 0), coalesce(u.fee_nano, 0),
       coalesce(u.charge_nano, 0))
ORDER BY 1, 2, 3, 4

-- name: latest_charges
SELECT merchant_id, request_id, wallet_id, meter_id, meter_version, price_version, billing_mode, provider, model,
       service_tier, ending, usage::text AS usage, input_cost_nano, output_cost_nano, cost_nano, fee_nano,
       charge_nano, tier_position
FROM requests ORDER BY created_at DESC LIMIT $1

-- name: all_charges
SELECT merchant_id, request_id, wallet_id, meter_id, meter_version, price_version, billing_mode, provider, model,
       service_tier, ending, usage::text AS usage, input_cost_nano, output_cost_nano, cost_nano, fee_nano,
       charge_nano, tier_position
FROM requests

-- name: expiry
-- What the expiry of a request's hold debited and counted, and where its late settlement then stood; no row where it
-- did not expire.
SELECT x.overage_delta - x.cycle_delta - x.bundle_delta - x.prepaid_delta AS debit, x.position, x.units,
       l.position AS late_position, l.units AS late_units
FROM ledger_entries x
LEFT JOIN ledger_entries l ON l.wallet_id = x.wallet_id AND l.reference = x.reference AND l.kind = 'late'
WHERE x.wallet_id = $1 AND x.reference = $2 AND x.kind = 'expired'

-- name: price_book
SELECT content FROM price_books WHERE version = $1
