-- name: resolve
SELECT connection_id FROM connections
WHERE merchant_id = $1 AND (connection_id = $2 OR secret_hash = $3 OR reference_id = $2)
ORDER BY deleted_at IS NOT NULL, (secret_hash = $3) DESC, (connection_id = $2) DESC, created_at DESC
LIMIT 1;

-- name: find
SELECT c.connection_id, c.reference_id, c.is_self, c.phone, c.email, c.first_name, c.last_name, c.metadata,
       c.overage_limit_nano, c.created_at, c.wallet_id, w.shard,
       s.subscription_id, s.plan_id, s.status, s.started_at, s.cancelled_at, s.cycle_start_at, s.cycle_end_at,
       p.name AS plan_name, p.period_amount_nano, p.included_credit_nano, p.billing_interval,
       p.rollover_type, p.bundle_rollover_type
FROM connections c
JOIN wallets w USING (wallet_id)
LEFT JOIN subscriptions s ON s.connection_id = c.connection_id AND s.status = 'active'
LEFT JOIN plans p ON p.plan_id = s.plan_id
WHERE c.merchant_id = $1 AND c.deleted_at IS NULL
  AND (c.connection_id = $2 OR c.secret_hash = $3 OR c.reference_id = $2)
ORDER BY (c.secret_hash = $3) DESC, (c.connection_id = $2) DESC
LIMIT 1;

-- name: page
-- The merchant's own connection is no customer: it is left out.
SELECT c.connection_id, c.reference_id, c.is_self, c.phone, c.email, c.first_name, c.last_name, c.metadata,
       c.overage_limit_nano, c.created_at, c.wallet_id, w.shard,
       s.subscription_id, s.plan_id, s.status, s.started_at, s.cancelled_at, s.cycle_start_at, s.cycle_end_at,
       p.name AS plan_name, p.period_amount_nano, p.included_credit_nano, p.billing_interval,
       p.rollover_type, p.bundle_rollover_type
FROM connections c
JOIN wallets w USING (wallet_id)
LEFT JOIN subscriptions s ON s.connection_id = c.connection_id AND s.status = 'active'
LEFT JOIN plans p ON p.plan_id = s.plan_id
WHERE c.merchant_id = $1 AND c.deleted_at IS NULL AND NOT c.is_self
  AND (c.created_at, c.connection_id) < ($2, $3) AND ($5::text IS NULL OR c.reference_id = $5)
ORDER BY c.created_at DESC, c.connection_id DESC
LIMIT $4;

-- name: delete
UPDATE connections SET deleted_at = now() WHERE connection_id = $1 AND deleted_at IS NULL;

-- name: end_subscription
UPDATE subscriptions SET status = 'cancelled', cancelled_at = now() WHERE connection_id = $1 AND status = 'active';
