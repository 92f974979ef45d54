-- name: insert
INSERT INTO checkout_sessions (checkout_session_id, merchant_id, secret_hash, checkout_mode, origin_url, reference_id,
                               connection_id, plan_id, credit_bundle_id, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + $10::interval)
RETURNING *;

-- name: find
SELECT * FROM checkout_sessions WHERE merchant_id = $1 AND checkout_session_id = $2;

-- name: page
SELECT * FROM checkout_sessions
WHERE merchant_id = $1 AND (created_at, checkout_session_id) < ($2, $3) AND ($5::text IS NULL OR reference_id = $5)
ORDER BY created_at DESC, checkout_session_id DESC
LIMIT $4;
