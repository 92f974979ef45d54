-- name: begin_setup
INSERT INTO sandbox_setups (setup_ref, customer_ref, status) VALUES ($1, $2, 'pending')
ON CONFLICT (setup_ref) DO UPDATE SET setup_ref = excluded.setup_ref
RETURNING customer_ref;

-- name: setup
SELECT status, method_ref, decline_code FROM sandbox_setups WHERE setup_ref = $1;

-- name: enter_card
-- The card that a setup has succeeded with stays.
UPDATE sandbox_setups SET status = $2, method_ref = $3, decline_code = $4
WHERE setup_ref = $1 AND status <> 'succeeded';

-- name: authenticate_setup
UPDATE sandbox_setups SET status = $2, decline_code = $3 WHERE setup_ref = $1 AND status = 'requires_action';

-- name: detach
UPDATE sandbox_setups SET detached_at = now() WHERE method_ref = $1 AND detached_at IS NULL;

-- name: card_state
SELECT customer_ref, status, detached_at IS NOT NULL AS detached FROM sandbox_setups WHERE method_ref = $1;

-- name: lock_charge
SELECT pg_advisory_xact_lock(hashtextextended('sandbox charge ' || $1, 0));

-- name: attempts
SELECT attempt, processor_ref, customer_ref, method_ref, amount_cents, currency, status, decline_code
FROM sandbox_charges WHERE charge_id = $1 ORDER BY attempt;

-- name: call_off
UPDATE sandbox_charges SET status = 'declined', decline_code = 'canceled'
WHERE charge_id = $1 AND status = 'requires_action';

-- name: insert_charge
INSERT INTO sandbox_charges (
    charge_id, attempt, processor_ref, customer_ref, method_ref, amount_cents, currency, status, decline_code
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: authenticate_charge
UPDATE sandbox_charges SET status = $2, decline_code = $3 WHERE processor_ref = $1 AND status = 'requires_action';

-- name: charge_by_ref
SELECT processor_ref, method_ref, amount_cents, status, decline_code FROM sandbox_charges WHERE processor_ref = $1;

-- name: lock_charge_by_ref
SELECT amount_cents, status FROM sandbox_charges WHERE processor_ref = $1 FOR UPDATE;

-- name: refund
SELECT processor_ref, amount_cents FROM sandbox_refunds WHERE refund_id = $1;

-- name: refunded
SELECT coalesce(sum(amount_cents), 0)::bigint AS cents FROM sandbox_refunds WHERE processor_ref = $1;

-- name: insert_refund
INSERT INTO sandbox_refunds (refund_id, processor_ref, amount_cents) VALUES ($1, $2, $3);
