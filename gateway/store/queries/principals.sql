-- name: merchant_by_key
SELECT m.merchant_id, m.mode, m.name, m.refuse_without_customer, m.self_connection_id, m.self_meter_id,
       b.content AS prices
FROM secret_keys k JOIN merchants m USING (merchant_id)
LEFT JOIN merchant_prices p USING (merchant_id) LEFT JOIN price_books b ON b.version = p.version
WHERE k.key_hash = $1 AND k.revoked_at IS NULL;

-- name: customer
SELECT c.connection_id, c.wallet_id, w.shard, c.is_self, c.disabled_at IS NOT NULL AS disabled,
       (c.secret_hash = $3) AS by_secret
FROM connections c JOIN wallets w USING (wallet_id)
WHERE c.merchant_id = $1 AND c.deleted_at IS NULL
  AND (c.connection_id = $2 OR c.secret_hash = $3 OR c.reference_id = $2)
ORDER BY by_secret DESC, (c.connection_id = $2) DESC
LIMIT 1;

-- name: meter
SELECT meter_id, version, definition
FROM meters
WHERE merchant_id = $1 AND deleted_at IS NULL AND (meter_id = $2 OR meter_slug = $2 OR secret_hash = $3)
ORDER BY (secret_hash = $3) DESC, (meter_id = $2) DESC
LIMIT 1;

-- name: plan_meters
SELECT pm.meter_id
FROM subscriptions s JOIN plan_meters pm USING (plan_id)
WHERE s.connection_id = $1 AND s.status = 'active';
