-- Spend keys, wallet keys, secret keys and providers' keys: the API's, and what their counters are opened from.

-- name: spend_by_hash
SELECT k.*, w.shard FROM spend_keys k JOIN wallets w USING (wallet_id) WHERE k.key_hash = $1 AND k.revoked_at IS NULL

-- name: spend_sums
-- What the record has of a spend key ($1): in the day $2, since the first days of its week $3 and month $4, and ever.
SELECT coalesce(sum(d.spent_nano) FILTER (WHERE d.day = $2), 0)::bigint AS day_nano,
       coalesce(sum(d.requests) FILTER (WHERE d.day = $2), 0)::bigint AS day_requests,
       coalesce(sum(d.spent_nano) FILTER (WHERE d.day BETWEEN $3 AND $2), 0)::bigint AS week_nano,
       coalesce(sum(d.requests) FILTER (WHERE d.day BETWEEN $3 AND $2), 0)::bigint AS week_requests,
       coalesce(sum(d.spent_nano) FILTER (WHERE d.day BETWEEN $4 AND $2), 0)::bigint AS month_nano,
       coalesce(sum(d.requests) FILTER (WHERE d.day BETWEEN $4 AND $2), 0)::bigint AS month_requests,
       coalesce(sum(d.spent_nano), 0)::bigint AS total_nano, coalesce(sum(d.requests), 0)::bigint AS total_requests,
       coalesce((extract(epoch FROM max(d.last_used_at)) * 1000)::bigint, 0) AS used_ms,
       coalesce((SELECT c.last_id FROM journal_cursors c WHERE c.shard = $5), 0) AS flushed_number
FROM spend_key_days d WHERE d.spend_key_id = $1

-- name: flushed
-- Up to which number of its journal a shard is recorded.
SELECT coalesce((SELECT last_id FROM journal_cursors WHERE shard = $1), 0) AS number

-- name: spend_page
SELECT k.*, w.shard FROM spend_keys k JOIN wallets w USING (wallet_id)
WHERE k.merchant_id = $1 AND k.revoked_at IS NULL AND ($5::text IS NULL OR k.wallet_id = $5)
  AND (k.created_at, k.spend_key_id) < ($2::timestamptz, $3::text)
ORDER BY k.created_at DESC, k.spend_key_id DESC LIMIT $4

-- name: spend_find
SELECT k.*, w.shard FROM spend_keys k JOIN wallets w USING (wallet_id)
WHERE k.merchant_id = $1 AND k.spend_key_id = $2 AND k.revoked_at IS NULL AND ($3::text IS NULL OR k.wallet_id = $3)

-- name: spend_lock
SELECT k.*, w.shard FROM spend_keys k JOIN wallets w USING (wallet_id)
WHERE k.merchant_id = $1 AND k.spend_key_id = $2 AND k.revoked_at IS NULL AND ($3::text IS NULL OR k.wallet_id = $3)
FOR UPDATE OF k

-- name: spend_insert
INSERT INTO spend_keys
    (spend_key_id, merchant_id, wallet_id, connection_id, meter_id, name, key_hash, key_hint, status, request_shape,
     allowed_models, allowed_providers, spend_limit_nano, spend_limit_cycle, request_limit, request_limit_cycle,
     requests_per_minute, requests_burst, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)

-- name: spend_update
UPDATE spend_keys
SET name = $2, status = $3, request_shape = $4, allowed_models = $5, allowed_providers = $6, spend_limit_nano = $7,
    spend_limit_cycle = $8, request_limit = $9, request_limit_cycle = $10, requests_per_minute = $11,
    requests_burst = $12, expires_at = $13
WHERE spend_key_id = $1

-- name: spend_rotate
UPDATE spend_keys SET key_hash = $4, key_hint = $5
WHERE merchant_id = $1 AND spend_key_id = $2 AND revoked_at IS NULL AND ($3::text IS NULL OR wallet_id = $3)
RETURNING spend_key_id

-- name: spend_revoke
UPDATE spend_keys SET revoked_at = now()
WHERE merchant_id = $1 AND spend_key_id = $2 AND revoked_at IS NULL AND ($3::text IS NULL OR wallet_id = $3)
RETURNING spend_key_id

-- name: owner_of_wallet
SELECT connection_id FROM connections WHERE merchant_id = $1 AND wallet_id = $2 AND deleted_at IS NULL

-- name: wallet_by_hash
SELECT k.wallet_key_id, k.merchant_id, k.wallet_id, k.connection_id
FROM wallet_keys k JOIN connections c USING (connection_id)
WHERE k.key_hash = $1 AND k.revoked_at IS NULL AND c.deleted_at IS NULL AND c.disabled_at IS NULL

-- name: wallet_used
UPDATE wallet_keys SET last_used_at = now()
WHERE wallet_key_id = $1 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')

-- name: wallet_insert
INSERT INTO wallet_keys (wallet_key_id, merchant_id, wallet_id, connection_id, name, key_hash, key_hint, secret_key_id)
SELECT $1, c.merchant_id, c.wallet_id, c.connection_id, $4, $5, $6, $7
FROM connections c WHERE c.merchant_id = $2 AND c.connection_id = $3 AND c.deleted_at IS NULL
RETURNING wallet_key_id

-- name: wallet_page
SELECT wallet_key_id, key_hint, name, wallet_id, last_used_at, created_at FROM wallet_keys
WHERE merchant_id = $1 AND revoked_at IS NULL AND ($5::text IS NULL OR wallet_id = $5)
  AND (created_at, wallet_key_id) < ($2::timestamptz, $3::text)
ORDER BY created_at DESC, wallet_key_id DESC LIMIT $4

-- name: wallet_rotate
UPDATE wallet_keys SET key_hash = $4, key_hint = $5
WHERE merchant_id = $1 AND wallet_key_id = $2 AND revoked_at IS NULL AND ($3::text IS NULL OR wallet_id = $3)
RETURNING wallet_key_id, key_hint, name, wallet_id, last_used_at, created_at

-- name: wallet_revoke
UPDATE wallet_keys SET revoked_at = now()
WHERE merchant_id = $1 AND wallet_key_id = $2 AND revoked_at IS NULL AND ($3::text IS NULL OR wallet_id = $3)
RETURNING wallet_key_id

-- name: wallet_end
-- What a login made beside a secret key: whoever loses that one loses both.
UPDATE wallet_keys SET revoked_at = now() WHERE merchant_id = $1 AND secret_key_id = $2 AND revoked_at IS NULL

-- name: secret_page
SELECT secret_key_id, name, secret_key_hint, created_at FROM secret_keys
WHERE merchant_id = $1 AND revoked_at IS NULL AND (created_at, secret_key_id) < ($2::timestamptz, $3::text)
ORDER BY created_at DESC, secret_key_id DESC LIMIT $4

-- name: secret_insert
INSERT INTO secret_keys (secret_key_id, merchant_id, name, key_hash, secret_key_hint) VALUES ($1, $2, $3, $4, $5)
RETURNING secret_key_id, name, secret_key_hint, created_at

-- name: secret_lock
-- All of a merchant's, so that of two that are revoked at once one is the last.
SELECT secret_key_id FROM secret_keys WHERE merchant_id = $1 AND revoked_at IS NULL ORDER BY secret_key_id FOR UPDATE

-- name: secret_revoke
UPDATE secret_keys SET revoked_at = now() WHERE merchant_id = $1 AND secret_key_id = $2 AND revoked_at IS NULL
RETURNING secret_key_id

-- name: secret_rotate
UPDATE secret_keys SET key_hash = $3, secret_key_hint = $4
WHERE merchant_id = $1 AND secret_key_id = $2 AND revoked_at IS NULL
RETURNING secret_key_id, name, secret_key_hint, created_at

-- name: provider_put
INSERT INTO provider_keys (merchant_id, provider, sealed, key_hint) VALUES ($1, $2, $3, $4)
ON CONFLICT (merchant_id, provider) DO UPDATE SET sealed = excluded.sealed, key_hint = excluded.key_hint, updated_at = now()
RETURNING provider, key_hint, created_at, updated_at

-- name: provider_list
SELECT provider, key_hint, created_at, updated_at FROM provider_keys WHERE merchant_id = $1 ORDER BY provider

-- name: provider_find
SELECT provider, key_hint, created_at, updated_at FROM provider_keys WHERE merchant_id = $1 AND provider = $2

-- name: provider_delete
DELETE FROM provider_keys WHERE merchant_id = $1 AND provider = $2 RETURNING provider

-- name: provider_sealed
SELECT provider, sealed FROM provider_keys WHERE merchant_id = $1
