-- name: merchant_by_key
SELECT m.merchant_id, m.mode, m.name, m.refuse_without_customer, m.self_connection_id, m.self_meter_id,
       b.content AS prices, coalesce(t.offset_us, 0) AS clock_offset_us
FROM secret_keys k JOIN merchants m USING (merchant_id)
LEFT JOIN merchant_prices p USING (merchant_id) LEFT JOIN price_books b ON b.version = p.version
LEFT JOIN test_clocks t USING (merchant_id)
WHERE k.key_hash = $1 AND k.revoked_at IS NULL;

-- name: merchant_by_id
SELECT m.merchant_id, m.mode, m.name, m.refuse_without_customer, m.self_connection_id, m.self_meter_id,
       b.content AS prices, coalesce(t.offset_us, 0) AS clock_offset_us
FROM merchants m
LEFT JOIN merchant_prices p USING (merchant_id) LEFT JOIN price_books b ON b.version = p.version
LEFT JOIN test_clocks t USING (merchant_id)
WHERE m.merchant_id = $1;

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
-- The meters linked to the customer's plan, which without a subscription is the merchant's Free plan.
SELECT p.unlinked_meters, array(SELECT meter_id FROM plan_meters pm WHERE pm.plan_id = p.plan_id) AS linked
FROM connections c
LEFT JOIN subscriptions s ON s.connection_id = c.connection_id AND s.status = 'active'
JOIN plans p ON p.plan_id = s.plan_id OR (s.plan_id IS NULL AND p.merchant_id = c.merchant_id AND p.is_free
                                          AND p.deleted_at IS NULL)
WHERE c.connection_id = $1;
