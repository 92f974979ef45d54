-- Who pays, and with which card (gateway/billing/payers.py).

-- name: known
SELECT payer_id FROM payers WHERE mode = $1 AND phone_hash = $2

-- name: insert
INSERT INTO payers (payer_id, mode, phone_hash, phone_sealed, email, first_name, last_name)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (mode, phone_hash) DO NOTHING

-- name: link
-- A connection of the payer's own mode.
UPDATE connections c SET payer_id = $3
FROM merchants m JOIN payers p ON p.mode = m.mode
WHERE c.merchant_id = $1 AND c.connection_id = $2 AND c.deleted_at IS NULL AND NOT c.is_self
  AND m.merchant_id = c.merchant_id AND p.payer_id = $3
RETURNING c.connection_id

-- name: lock
SELECT payer_id FROM payers WHERE payer_id = $1 FOR NO KEY UPDATE

-- name: clear_default
UPDATE payment_methods SET is_default = false WHERE payer_id = $1 AND is_default AND removed_at IS NULL

-- name: make_default
UPDATE payment_methods SET is_default = true, brand = $4, last4 = $5, exp_month = $6, exp_year = $7
WHERE payer_id = $1 AND processor = $2 AND method_ref = $3 AND removed_at IS NULL
RETURNING payment_method_id

-- name: insert_method
INSERT INTO payment_methods (payment_method_id, payer_id, processor, customer_ref, method_ref, brand, last4, exp_month,
                             exp_year, is_default)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, true)

-- name: remove_method
UPDATE payment_methods SET removed_at = now(), is_default = false
WHERE processor = $1 AND method_ref = $2 AND removed_at IS NULL
RETURNING payer_id

-- name: change_method
UPDATE payment_methods SET brand = $3, last4 = $4, exp_month = $5, exp_year = $6
WHERE processor = $1 AND method_ref = $2 AND removed_at IS NULL

-- name: methods
SELECT payment_method_id, processor, customer_ref, method_ref, brand, last4, exp_month, exp_year, is_default, added_at
FROM payment_methods WHERE payer_id = $1 AND removed_at IS NULL
ORDER BY is_default DESC, added_at DESC

-- name: hurry
-- Every wallet that this payer pays for is looked at now, the one that has owed for longest first, its retries begun anew.
INSERT INTO collections (wallet_id, merchant_id, due_at)
SELECT c.wallet_id, c.merchant_id, '-infinity' FROM connections c
WHERE c.payer_id = $1 AND c.deleted_at IS NULL AND ($2::text IS NULL OR c.connection_id = $2)
ORDER BY c.wallet_id
ON CONFLICT (wallet_id) DO UPDATE SET due_at = coalesce(collections.limited_at, '-infinity'), declines = 0
