-- name: resolve
SELECT connection_id FROM connections
WHERE merchant_id = $1 AND (connection_id = $2 OR secret_hash = $3 OR reference_id = $2)
ORDER BY deleted_at IS NOT NULL, (secret_hash = $3) DESC, (connection_id = $2) DESC, created_at DESC
LIMIT 1;

-- name: find
SELECT c.connection_id, c.reference_id, c.is_self, c.phone, c.email, c.first_name, c.last_name, c.metadata,
       c.overage_limit_nano, c.created_at, c.wallet_id, w.shard,
       s.subscription_id, s.plan_id, s.status AS subscription_status, s.cycle_start_at, s.cycle_end_at,
       p.name AS plan_name
FROM connections c
JOIN wallets w USING (wallet_id)
LEFT JOIN subscriptions s ON s.connection_id = c.connection_id AND s.status = 'active'
LEFT JOIN plans p ON p.plan_id = s.plan_id
WHERE c.merchant_id = $1 AND c.deleted_at IS NULL
  AND (c.connection_id = $2 OR c.secret_hash = $3 OR c.reference_id = $2)
ORDER BY (c.secret_hash = $3) DESC, (c.connection_id = $2) DESC
LIMIT 1;

-- name: page
-- The merchant's own connection is no customer: it is left out. {scope}: of one reference id, if that is asked for.
SELECT c.connection_id, c.reference_id, c.is_self, c.phone, c.email, c.first_name, c.last_name, c.metadata,
       c.overage_limit_nano, c.created_at, c.wallet_id, w.shard,
       s.subscription_id, s.plan_id, s.status AS subscription_status, s.started_at, s.cycle_start_at, s.cycle_end_at,
       p.name AS plan_name
FROM connections c
JOIN wallets w USING (wallet_id)
LEFT JOIN subscriptions s ON s.connection_id = c.connection_id AND s.status = 'active'
LEFT JOIN plans p ON p.plan_id = s.plan_id
WHERE c.merchant_id = $1 AND c.deleted_at IS NULL AND NOT c.is_self
  AND (c.created_at, c.connection_id) < ($2, $3){scope}
ORDER BY c.created_at DESC, c.connection_id DESC
LIMIT $4;

-- name: change
-- $3 to $8: which fields are given.
UPDATE connections SET
    reference_id = CASE WHEN $3 THEN $9 ELSE reference_id END,
    email = CASE WHEN $4 THEN $10 ELSE email END,
    phone = CASE WHEN $5 THEN $11 ELSE phone END,
    first_name = CASE WHEN $6 THEN $12 ELSE first_name END,
    last_name = CASE WHEN $7 THEN $13 ELSE last_name END,
    metadata = CASE WHEN $8 THEN $14::jsonb ELSE metadata END
WHERE merchant_id = $1 AND connection_id = $2 AND deleted_at IS NULL
RETURNING connection_id;

-- name: delete
UPDATE connections SET deleted_at = now() WHERE connection_id = $1 AND deleted_at IS NULL RETURNING connection_id;

-- name: end_subscription
-- At $2, in the merchant's time.
UPDATE subscriptions SET status = 'cancelled', cancelled_at = coalesce(cancelled_at, $2), ended_at = $2,
                         pending_type = NULL, pending_plan_id = NULL, pending_at = NULL
WHERE connection_id = $1 AND status = 'active';
