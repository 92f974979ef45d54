-- name: insert_merchant
INSERT INTO merchants (merchant_id, account_id, mode, name) VALUES ($1, $2, $3, $4);

-- name: set_own
UPDATE merchants SET self_connection_id = $2, self_meter_id = $3 WHERE merchant_id = $1;

-- name: merchant_by_account
SELECT merchant_id, mode, name FROM merchants WHERE account_id = $1 AND mode = $2;

-- name: insert_key
INSERT INTO secret_keys (secret_key_id, merchant_id, name, key_hash, secret_key_hint) VALUES ($1, $2, $3, $4, $5);

-- name: insert_meter
INSERT INTO meters (meter_id, merchant_id, meter_slug, secret_hash, name, version, definition)
VALUES ($1, $2, $3, $4, $5, 1, $6);

-- name: insert_meter_version
INSERT INTO meter_versions (meter_id, version, definition) VALUES ($1, $2, $3);

-- name: insert_wallet
INSERT INTO wallets (wallet_id, merchant_id, shard) VALUES ($1, $2, $3);

-- name: insert_connection
INSERT INTO connections (
    connection_id, merchant_id, wallet_id, secret_hash, reference_id, is_self, email, phone, first_name, last_name, metadata,
    overage_limit_nano
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: insert_grant
INSERT INTO grants (grant_id, wallet_id, pot, amount_nano, reason) VALUES ($1, $2, $3, $4, $5);
