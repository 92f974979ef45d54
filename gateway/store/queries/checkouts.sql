-- Customers on their way through a checkout (gateway/billing/checkout.py, purchases.py).
--
-- Locks are taken in this order: checkout, payer, connection, charge, checkout session.

-- name: open
INSERT INTO checkouts (checkout_session_id)
SELECT checkout_session_id FROM checkout_sessions WHERE secret_hash = $1
ON CONFLICT DO NOTHING

-- name: read
-- `filed_*`: the payer of the connection that the session names. `card_*`: the payer's default card.
SELECT s.checkout_session_id, s.merchant_id, m.name AS merchant, m.mode, s.checkout_mode, s.origin_url, s.reference_id,
       s.connection_id AS session_connection_id, s.plan_id, s.credit_bundle_id, s.completed_at IS NOT NULL AS completed,
       s.expires_at <= now() AS expired,
       k.phone_sealed, k.codes_sent, k.codes_wrong, k.payer_id, k.proof_hash, k.wants_card, k.setup_id,
       k.setup_processor, k.setup_waits, k.customer_ref, k.connection_id, k.charge_id, k.charge_action, k.payments,
       extract(epoch FROM now() - k.code_sent_at)::double precision AS code_age_s,
       coalesce(k.proof_until > now(), false) AS proof_good,
       f.payer_id AS filed_payer_id, f.phone_hash AS filed_phone_hash, f.phone_sealed AS filed_phone_sealed,
       p.email, p.first_name, p.last_name, p.phone_hash, p.phone_sealed AS payer_phone_sealed,
       pm.processor AS card_processor, pm.customer_ref AS card_customer_ref, pm.method_ref AS card_method_ref,
       pm.brand AS card_brand, pm.last4 AS card_last4, pm.exp_month AS card_exp_month, pm.exp_year AS card_exp_year,
       h.status AS charge_status, h.decline_code, h.kind AS charge_kind, h.amount_cents AS charge_cents,
       h.connection_id AS charge_connection_id, h.processor AS charge_processor, h.plan_id AS charge_plan_id
FROM checkout_sessions s
JOIN merchants m USING (merchant_id)
LEFT JOIN checkouts k USING (checkout_session_id)
LEFT JOIN connections fc ON fc.connection_id = s.connection_id AND fc.deleted_at IS NULL
LEFT JOIN payers f ON f.payer_id = fc.payer_id
LEFT JOIN payers p ON p.payer_id = k.payer_id
LEFT JOIN payment_methods pm ON pm.payer_id = k.payer_id AND pm.is_default AND pm.removed_at IS NULL
LEFT JOIN charges h ON h.charge_id = k.charge_id
WHERE s.secret_hash = $1

-- name: lock
SELECT 1 FROM checkouts WHERE checkout_session_id = $1 FOR NO KEY UPDATE

-- name: sweep_codes
DELETE FROM checkout_codes WHERE sent_at < now() - interval '1 hour'

-- name: lock_phone
SELECT pg_advisory_xact_lock(hashtextextended('checkout code ' || encode($1::bytea, 'hex'), 0))

-- name: codes_to_phone
SELECT count(*) FROM checkout_codes WHERE phone_hash = $1 AND sent_at > now() - interval '1 hour'

-- name: count_code
INSERT INTO checkout_codes (phone_hash) VALUES ($1)

-- name: code_sent
UPDATE checkouts SET phone_sealed = $2, codes_sent = codes_sent + 1, code_sent_at = now(), updated_at = now()
WHERE checkout_session_id = $1

-- name: forget_phone
UPDATE checkouts SET phone_sealed = NULL, updated_at = now() WHERE checkout_session_id = $1

-- name: wrong_code
UPDATE checkouts SET codes_wrong = codes_wrong + 1, updated_at = now() WHERE checkout_session_id = $1

-- name: proven
-- A card that was being added was another payer's, if the payer is another.
UPDATE checkouts
SET setup_id = CASE WHEN payer_id = $2 THEN setup_id END, setup_waits = setup_waits AND payer_id = $2,
    wants_card = wants_card AND payer_id = $2, payer_id = $2, proof_hash = $3,
    proof_until = now() + $4::integer * interval '1 second', updated_at = now()
WHERE checkout_session_id = $1

-- name: fill_contact
UPDATE payers SET email = $2, first_name = $3, last_name = $4 WHERE payer_id = $1 AND email = ''

-- name: begin_setup
UPDATE checkouts SET setup_id = $2, setup_processor = $3, customer_ref = $4, setup_waits = false, updated_at = now()
WHERE checkout_session_id = $1 AND setup_id IS NULL

-- name: end_setup
UPDATE checkouts SET setup_id = NULL, setup_waits = false, wants_card = false, updated_at = now()
WHERE checkout_session_id = $1 AND setup_id = $2

-- name: setup_waits
UPDATE checkouts SET setup_waits = $3, updated_at = now() WHERE checkout_session_id = $1 AND setup_id = $2

-- name: want_card
-- A setup that has come to its end adds no second card.
UPDATE checkouts
SET wants_card = $2, setup_waits = false, setup_id = CASE WHEN $2 THEN NULL ELSE setup_id END, updated_at = now()
WHERE checkout_session_id = $1

-- name: connection
-- Whose the purchase is: the connection that the session names, else the one with its reference, else the payer's with
-- this merchant.
SELECT c.connection_id, c.wallet_id, c.deleted_at IS NOT NULL AS hidden,
       w.cycle_nano + w.bundle_nano + w.prepaid_nano - w.overage_nano AS balance_nano
FROM connections c JOIN wallets w USING (wallet_id)
WHERE c.merchant_id = $1 AND NOT c.is_self AND (c.deleted_at IS NULL OR c.deleted_at = 'infinity')
  AND CASE WHEN $2::text IS NOT NULL THEN c.connection_id = $2
           ELSE c.payer_id = $4 OR (c.reference_id = $3 AND c.deleted_at IS NULL) END
ORDER BY coalesce(c.reference_id = $3, false) DESC, c.deleted_at IS NOT NULL, c.created_at
LIMIT 1

-- name: hide_connection
UPDATE connections SET deleted_at = 'infinity' WHERE connection_id = $1

-- name: lock_connection
SELECT 1 FROM connections WHERE connection_id = $1 FOR NO KEY UPDATE

-- name: set_payer
UPDATE connections SET payer_id = $2, phone = $3, email = $4, first_name = $5, last_name = $6 WHERE connection_id = $1

-- name: plan
SELECT plan_id, name, period_amount_nano, included_credit_nano, billing_interval, overage = 'charge' AS charges_overage
FROM plans WHERE plan_id = $1 AND deleted_at IS NULL

-- name: bundle
SELECT b.credit_bundle_id, b.name, b.cost_nano, b.credit_nano, b.plan_id, p.name AS plan
FROM credit_bundles b JOIN plans p USING (plan_id) WHERE b.credit_bundle_id = $1 AND b.deleted_at IS NULL

-- name: subscribed
SELECT s.plan_id, p.name, p.period_amount_nano, p.billing_interval, s.cycle_end_at
FROM subscriptions s JOIN plans p USING (plan_id) WHERE s.connection_id = $1 AND s.status = 'active'

-- name: claim_charge
-- It is sent from here: the worker asks about it when $2 milliseconds have passed.
UPDATE charges
SET asked = asked + 1, sent_at = now(), next_attempt_at = now() + $2::integer * interval '1 millisecond'
WHERE charge_id = $1
RETURNING *, extract(epoch FROM attempt_at)::bigint AS written_at_s

-- name: charging
UPDATE checkouts
SET connection_id = $2, charge_id = $3, charge_action = NULL, payments = payments + 1, updated_at = now()
WHERE checkout_session_id = $1

-- name: needs_action
UPDATE checkouts SET charge_action = $2, updated_at = now() WHERE charge_id = $1

-- name: charge
SELECT *, extract(epoch FROM attempt_at)::bigint AS written_at_s FROM charges WHERE charge_id = $1

-- name: bought_by
-- The checkout that a charge belongs to.
SELECT s.checkout_session_id, s.merchant_id, s.checkout_mode, s.reference_id, s.plan_id, s.credit_bundle_id,
       s.completed_at IS NOT NULL AS completed, k.payer_id, k.connection_id, h.amount_cents
FROM checkouts k JOIN checkout_sessions s USING (checkout_session_id) JOIN charges h USING (charge_id)
WHERE k.charge_id = $1

-- name: show_connection
-- A reference that another customer has got meanwhile stays that one's.
UPDATE connections c
SET deleted_at = NULL,
    reference_id = CASE WHEN c.reference_id IS NULL AND NOT EXISTS (
        SELECT 1 FROM connections o WHERE o.merchant_id = c.merchant_id AND o.reference_id = $2 AND o.deleted_at IS NULL
    ) THEN $2 ELSE c.reference_id END
FROM connections before
WHERE c.connection_id = $1 AND before.connection_id = c.connection_id
  AND (c.deleted_at IS NULL OR c.deleted_at = 'infinity')
RETURNING before.deleted_at IS NOT NULL AS hidden

-- name: complete
UPDATE checkout_sessions SET completed_at = now(), connection_id = $2
WHERE checkout_session_id = $1 AND completed_at IS NULL
RETURNING completed_at

-- name: charge_is_credit
-- What it was to buy is not to be had any more: it buys credit.
UPDATE charges SET pot = 'prepaid', credit_nano = amount_cents * 10000000 WHERE charge_id = $1 AND pot IS NULL
RETURNING wallet_id, credit_nano
