-- The background worker's other loops.

-- name: ping
SELECT 1

-- name: pending_grants
-- A page of the credit that is owed and not yet known to be applied, behind ($1, $2). The cursor tells how far the
-- journal of the wallet's shard has been flushed. What a turn could let expire comes behind the turns before it.
SELECT g.grant_id, g.created_at, g.pot, g.amount_nano, w.wallet_id, w.shard, w.merchant_id,
       extract(epoch FROM now() - g.created_at)::double precision AS age_s,
       coalesce(c.last_id, 0) AS flushed_number
FROM grants g
JOIN wallets w ON w.wallet_id = g.wallet_id
LEFT JOIN journal_cursors c ON c.shard = w.shard
WHERE g.applied_at IS NULL
  AND (g.created_at, g.grant_id) > ($1::timestamptz, $2::text)
  AND g.created_at < now() - $3::integer * interval '1 second'
  AND (g.pot NOT IN ('cycle', 'bundle')
       OR NOT EXISTS (SELECT 1 FROM turns t
                      WHERE t.wallet_id = g.wallet_id AND t.applied_at IS NULL AND t.turn_seq < g.turn_seq))
ORDER BY g.created_at, g.grant_id
LIMIT $4

-- name: partition_lock
SELECT pg_advisory_xact_lock(hashtext('obol.requests.partitions'))

-- name: partition_exists
SELECT to_regclass($1) IS NOT NULL

-- name: default_partition_holds
SELECT EXISTS (SELECT 1 FROM requests_default WHERE created_at >= $1 AND created_at < $2)
