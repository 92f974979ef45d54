-- Subscriptions as the API shows them (gateway/api/subscription_reader.py). What changes them stands in subscriptions.sql.

-- name: page
-- {scope}: by status, by connection, by id; a condition is there only if it is asked for, so that every plan can use its
-- index.
SELECT s.subscription_id, s.connection_id, s.plan_id, s.status, s.started_at, s.cancelled_at,
       s.cycle_start_at, s.cycle_end_at, coalesce(s.anchor_at, s.started_at) AS anchor_at, s.auto_top_up_bundle_id,
       s.pending_type, s.pending_plan_id, s.pending_at, p.merchant_id, p.created_at AS plan_created_at,
       p.name AS plan_name, p.period_amount_nano, p.included_credit_nano, p.billing_interval,
       p.rollover_type, p.bundle_rollover_type,
       n.name AS pending_plan_name, n.period_amount_nano AS pending_period_amount_nano,
       n.included_credit_nano AS pending_included_credit_nano,
       c.phone, c.email, c.first_name, c.last_name, c.created_at AS connection_created_at, c.wallet_id, w.shard
FROM subscriptions s
JOIN plans p ON p.plan_id = s.plan_id
LEFT JOIN plans n ON n.plan_id = s.pending_plan_id
JOIN connections c ON c.connection_id = s.connection_id
JOIN wallets w ON w.wallet_id = c.wallet_id
WHERE s.merchant_id = $1 AND (s.started_at, s.subscription_id) < ($2, $3){scope}
ORDER BY s.started_at DESC, s.subscription_id DESC
LIMIT $4;
