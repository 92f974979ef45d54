-- What `obol audit` (gateway/audit.py) compares. Each statement sees one snapshot, and the flusher writes entries,
-- wallets, rows and sums in one transaction, so running traffic makes no difference here.

-- name: wallets_page
SELECT wallet_id, shard, merchant_id FROM wallets WHERE wallet_id > $1 ORDER BY wallet_id LIMIT $2

-- name: wallets
-- Row and ledger of some wallets. `at_*`: the ledger up to the sequence number that Redis showed ($2).
-- `limit_nano`: the overage that the wallet's customer may run up; null without one, and while a turn that may change it
-- is on its way.
SELECT w.wallet_id, w.last_seq, w.cycle_nano, w.bundle_nano, w.prepaid_nano, w.overage_nano, e.*,
       (SELECT c.overage_limit_nano FROM connections c
        WHERE c.wallet_id = w.wallet_id AND c.deleted_at IS NULL
          AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.wallet_id = w.wallet_id AND t.applied_at IS NULL)
       ) AS limit_nano
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
       (SELECT count(*) FROM flush_rejects) AS rejects, (SELECT count(*) FROM turns) AS turns

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

-- name: summed_hours
-- Sums over customers, and over meters, that differ from those by both.
SELECT merchant_id, hour, of, name,
       concat_ws(' ', coalesce(u.requests, 0), coalesce(u.tokens, 0), coalesce(u.cost, 0), coalesce(u.fee, 0),
                 coalesce(u.charge, 0)) AS expected,
       concat_ws(' ', coalesce(k.requests, 0), coalesce(k.tokens, 0), coalesce(k.cost_nano, 0),
                 coalesce(k.fee_nano, 0), coalesce(k.charge_nano, 0)) AS found
FROM (SELECT merchant_id, hour, of, CASE of WHEN 'meter' THEN meter_id ELSE connection_id END AS name,
             sum(requests) AS requests, sum(tokens) AS tokens, sum(cost_nano) AS cost, sum(fee_nano) AS fee,
             sum(charge_nano) AS charge
      FROM usage_hourly CROSS JOIN (VALUES ('meter'), ('customer')) kinds (of) GROUP BY 1, 2, 3, 4) u
FULL JOIN (SELECT merchant_id, hour, 'meter' AS of, meter_id AS name, requests, tokens, cost_nano, fee_nano, charge_nano
           FROM usage_by_meter
           UNION ALL
           SELECT merchant_id, hour, 'customer', connection_id, requests, tokens, cost_nano, fee_nano, charge_nano
           FROM usage_by_customer) k USING (merchant_id, hour, of, name)
WHERE (coalesce(u.requests, 0), coalesce(u.tokens, 0), coalesce(u.cost, 0), coalesce(u.fee, 0), coalesce(u.charge, 0))
   <> (coalesce(k.requests, 0), coalesce(k.tokens, 0), coalesce(k.cost_nano, 0), coalesce(k.fee_nano, 0),
       coalesce(k.charge_nano, 0))
ORDER BY 1, 2, 3, 4

-- name: turns
-- I9: entries of turns that added anything but their credit, or let expire anything but what was left and does not roll
-- over; entries of no turn; turns that are not recorded once.
WITH moved AS (
    SELECT wallet_id, kind, reference, cycle_delta, bundle_delta, prepaid_delta, overage_delta,
           (sum(cycle_delta) OVER before_and_this - cycle_delta)::bigint AS cycle_before,
           (sum(bundle_delta) OVER before_and_this - bundle_delta)::bigint AS bundle_before
    FROM ledger_entries
    WHERE wallet_id IN (SELECT wallet_id FROM turns UNION SELECT wallet_id FROM ledger_entries WHERE kind = 'turn')
    WINDOW before_and_this AS (PARTITION BY wallet_id ORDER BY seq)
), entries AS (
    SELECT moved.*, count(*) OVER (PARTITION BY reference) AS times FROM moved WHERE kind = 'turn'
)
SELECT coalesce(t.wallet_id, e.wallet_id) AS wallet_id, coalesce(t.turn_id, e.reference) AS turn_id,
       concat_ws(' ', t.credit_nano - CASE WHEN t.keep_cycle THEN 0 ELSE e.cycle_before END,
                 CASE WHEN t.keep_bundle THEN 0 ELSE - e.bundle_before END, 0, 0, 1) AS expected,
       concat_ws(' ', e.cycle_delta, e.bundle_delta, e.prepaid_delta, e.overage_delta, coalesce(e.times, 0)) AS found
FROM (SELECT * FROM turns WHERE applied_at IS NOT NULL) t
FULL JOIN entries e ON e.reference = t.turn_id AND e.wallet_id = t.wallet_id
WHERE t.turn_id IS NULL OR e.reference IS NULL OR e.times <> 1
   OR (e.cycle_delta, e.bundle_delta, e.prepaid_delta, e.overage_delta)
   <> (t.credit_nano - CASE WHEN t.keep_cycle THEN 0 ELSE e.cycle_before END,
       CASE WHEN t.keep_bundle THEN 0 ELSE - e.bundle_before END, 0, 0)
ORDER BY 1, 2

-- name: turned
-- Subscriptions whose turns are not those that they say: number 0 is their start, which those of before cycles lack.
SELECT s.subscription_id, s.turns - 1 AS number, coalesce(t.turns, 0) AS turns, t.first, t.last
FROM subscriptions s
LEFT JOIN (SELECT subscription_id, count(*) AS turns, min(number) AS first, max(number) AS last FROM turns
           WHERE subscription_id IS NOT NULL GROUP BY 1) t USING (subscription_id)
WHERE coalesce(t.last, 0) <> s.turns - 1 OR t.turns <> t.last - t.first + 1 OR t.first > 1
ORDER BY 1

-- name: overdue
-- Turns that have been owed for longer than $1 s.
SELECT turn_id, wallet_id, created_at FROM turns
WHERE applied_at IS NULL AND created_at < now() - $1::integer * interval '1 second'
ORDER BY turn_seq

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
       l.position AS late_position, l.units AS late_units, l.seq AS late_seq,
       (SELECT max(t.seq) FROM ledger_entries t
        WHERE t.wallet_id = x.wallet_id AND t.kind = 'turn' AND t.seq > x.seq AND t.seq < l.seq) AS turn_seq
FROM ledger_entries x
LEFT JOIN ledger_entries l ON l.wallet_id = x.wallet_id AND l.reference = x.reference AND l.kind = 'late'
WHERE x.wallet_id = $1 AND x.reference = $2 AND x.kind = 'expired'

-- name: units_since
-- By how much a meter ($3) was used from one entry of a wallet, the turn of a cycle, to another.
SELECT coalesce(sum(e.units), 0)::bigint AS units
FROM ledger_entries e
JOIN wallets w USING (wallet_id)
JOIN request_index i ON i.merchant_id = w.merchant_id AND i.request_id = e.reference
JOIN requests r ON r.merchant_id = i.merchant_id AND r.request_id = i.request_id AND r.created_at = i.created_at
WHERE e.wallet_id = $1 AND e.seq > $2 AND e.seq < $4 AND r.meter_id = $3

-- name: price_book
SELECT content FROM price_books WHERE version = $1
