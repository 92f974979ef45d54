-- name: keep
INSERT INTO logins (token_hash, step, key_hash, expires_at)
VALUES ($1, $2, $3, now() + make_interval(secs => $4));

-- name: take
-- Of two who take the same token one finds it.
WITH taken AS (
    DELETE FROM logins WHERE token_hash = $1 AND step = $2 RETURNING key_hash, expires_at
)
SELECT taken.key_hash, m.merchant_id, m.account_id, m.mode, m.self_connection_id, c.wallet_id
FROM taken
JOIN secret_keys k ON k.key_hash = taken.key_hash AND k.revoked_at IS NULL
JOIN merchants m ON m.merchant_id = k.merchant_id
LEFT JOIN connections c ON c.connection_id = m.self_connection_id
WHERE taken.expires_at > now();

-- name: sweep
DELETE FROM logins WHERE expires_at <= now();
