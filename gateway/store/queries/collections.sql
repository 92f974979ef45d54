-- The collector (gateway/worker/collector.py): wallets that it has to look at.
--
-- What is locked the collector leaves for its next round, and what it has locked is all that it writes. So a flusher, or
-- a worker that turns cycles, may wait for it while it holds rows of theirs. The connection comes first, as elsewhere.

-- name: due
-- By real time, which is behind every merchant's.
SELECT k.wallet_id
FROM collections k JOIN wallets w USING (wallet_id) JOIN connections c USING (wallet_id)
WHERE k.due_at <= now()
ORDER BY k.due_at
LIMIT $1
FOR NO KEY UPDATE OF c, w, k SKIP LOCKED

-- name: due_by_clock
-- The same, by the clocks of merchants that have moved theirs, in any order. Looked for one by one, so that the index by
-- merchant and time is used.
WITH found AS MATERIALIZED (
    SELECT of_one.wallet_id
    FROM (SELECT merchant_id, now() + offset_us * interval '1 microsecond' AS merchant_now
          FROM test_clocks WHERE offset_us > 0 ORDER BY random()) t
    CROSS JOIN LATERAL (
        SELECT k.wallet_id, k.due_at FROM collections k
        WHERE k.merchant_id = t.merchant_id AND k.due_at <= t.merchant_now
        ORDER BY k.due_at LIMIT $1) of_one
    LIMIT $1
)
SELECT k.wallet_id
FROM collections k JOIN wallets w USING (wallet_id) JOIN connections c USING (wallet_id)
JOIN test_clocks t ON t.merchant_id = k.merchant_id
WHERE k.wallet_id IN (SELECT wallet_id FROM found)
  AND k.due_at <= now() + t.offset_us * interval '1 microsecond'
ORDER BY k.due_at
FOR NO KEY UPDATE OF c, w, k SKIP LOCKED

-- name: looked_at
-- What is recorded of wallets that this transaction has locked: a statement of its own, which sees what was committed
-- meanwhile. The subscription is the active one, or the last that was. `unrecorded`: credit or a turn is on its way.
SELECT k.wallet_id, w.shard, c.connection_id, c.merchant_id, m.mode, m.name AS merchant, c.payer_id,
       k.cycle_ended, k.declines, k.limited_at, c.overage_limit_nano AS limit_nano,
       now() + coalesce(t.offset_us, 0) * interval '1 microsecond' AS merchant_now,
       w.cycle_nano + w.bundle_nano + w.prepaid_nano AS pots_nano, w.overage_nano,
       s.plan_id, s.status = 'active' AS subscribed, s.can_charge, p.overage = 'charge' AS charges_overage,
       p.overage_cap_nano,
       b.credit_bundle_id, b.cost_nano, b.credit_nano,
       pm.processor, pm.customer_ref, pm.method_ref,
       EXISTS (SELECT 1 FROM grants g WHERE g.wallet_id = k.wallet_id AND g.applied_at IS NULL)
           OR EXISTS (SELECT 1 FROM turns n WHERE n.wallet_id = k.wallet_id AND n.applied_at IS NULL) AS unrecorded,
       EXISTS (SELECT 1 FROM charges h WHERE h.wallet_id = k.wallet_id AND h.status = 'open') AS charging,
       d.charge_id AS declined_id, d.kind AS declined_kind, d.owed_nano AS declined_nano,
       d.processor AS declined_processor, d.credit_bundle_id AS declined_bundle_id
FROM collections k
JOIN wallets w USING (wallet_id)
JOIN connections c USING (wallet_id)
JOIN merchants m ON m.merchant_id = c.merchant_id
LEFT JOIN test_clocks t ON t.merchant_id = c.merchant_id
LEFT JOIN LATERAL (SELECT * FROM subscriptions s WHERE s.connection_id = c.connection_id
                   ORDER BY s.started_at DESC, s.status LIMIT 1) s ON true
LEFT JOIN plans p ON p.plan_id = s.plan_id
LEFT JOIN credit_bundles b ON b.credit_bundle_id = s.auto_top_up_bundle_id AND b.plan_id = s.plan_id
                          AND b.deleted_at IS NULL AND s.status = 'active'
LEFT JOIN payment_methods pm ON pm.payer_id = c.payer_id AND pm.is_default AND pm.removed_at IS NULL
LEFT JOIN charges d ON d.wallet_id = k.wallet_id AND d.status = 'declined' AND d.kind IN ('overage', 'auto_top_up')
WHERE k.wallet_id = ANY ($1) AND c.deleted_at IS NULL

-- name: postpone
UPDATE collections SET due_at = $2 WHERE wallet_id = $1

-- name: leave
-- Until what it waits for has come: the end of its charge, or a new card.
UPDATE collections SET due_at = 'infinity' WHERE wallet_id = ANY ($1)

-- name: charged
-- The same of those whose overage is being charged: with it the cycle's end is settled.
UPDATE collections SET due_at = 'infinity', cycle_ended = false WHERE wallet_id = ANY ($1)

-- name: forget
DELETE FROM collections WHERE wallet_id = ANY ($1)

-- name: watch
UPDATE wallets w SET collect_at_nano = u.level_nano
FROM unnest($1::text[], $2::bigint[]) AS u (wallet_id, level_nano)
WHERE w.wallet_id = u.wallet_id

-- name: look_again
-- At once, with nothing against it any more.
INSERT INTO collections (wallet_id, merchant_id, due_at) VALUES ($1, $2, '-infinity')
ON CONFLICT (wallet_id) DO UPDATE SET due_at = '-infinity', declines = 0, limited_at = NULL

-- name: count_decline
-- Returns how often in a row the card was declined, and since when, at $3 in the merchant's time.
INSERT INTO collections (wallet_id, merchant_id, due_at, declines, limited_at) VALUES ($1, $2, 'infinity', 1, $3)
ON CONFLICT (wallet_id) DO UPDATE
SET due_at = 'infinity', declines = collections.declines + 1,
    limited_at = CASE WHEN collections.declines = 0 THEN excluded.limited_at ELSE collections.limited_at END
RETURNING declines, limited_at

-- name: limited
-- How many customers are limited, and wallets wait to be looked at.
SELECT count(*) FILTER (WHERE limited_at IS NOT NULL) AS limited FROM collections
