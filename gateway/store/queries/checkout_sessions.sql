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

-- name: customer
SELECT connection_id FROM connections
WHERE merchant_id = $1 AND deleted_at IS NULL AND (connection_id = $2 OR secret_hash = $3 OR reference_id = $2)
ORDER BY (secret_hash = $3) DESC, (connection_id = $2) DESC
LIMIT 1;

-- name: plan
SELECT plan_id FROM plans WHERE merchant_id = $1 AND plan_id = $2 AND deleted_at IS NULL AND archived_at IS NULL;

-- name: bundle
SELECT b.credit_bundle_id, b.plan_id FROM credit_bundles b JOIN plans p USING (plan_id)
WHERE p.merchant_id = $1 AND b.credit_bundle_id = $2 AND b.deleted_at IS NULL;
