-- Charges of cards (gateway/billing/charges.py, worker/charger.py).
--
-- Locks are taken in this order: connection, charge, collection.

-- name: insert
INSERT INTO charges (charge_id, merchant_id, connection_id, wallet_id, kind, amount_cents, owed_nano, pot, credit_nano,
                     credit_bundle_id, plan_id, description, mode, processor, customer_ref, method_ref)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)

-- name: retry
-- The same charge, another attempt, perhaps with another card.
UPDATE charges
SET status = 'open', attempt = attempt + 1, attempt_at = now(), asked = 0, sent_at = NULL, next_attempt_at = now(),
    customer_ref = $2, method_ref = $3, updated_at = now()
WHERE charge_id = $1 AND status = 'declined'

-- name: cancel
UPDATE charges SET status = 'canceled', updated_at = now() WHERE charge_id = ANY ($1) AND status = 'declined'

-- name: claim
-- Open charges that are due, for $2 milliseconds: a payer's one after the other, the oldest first. `sent_at` is when each
-- was sent before, if it was.
WITH due AS MATERIALIZED (
    SELECT charge_id, sent_at FROM charges h
    WHERE status = 'open' AND next_attempt_at <= now()
      AND NOT EXISTS (SELECT 1 FROM charges o
                      WHERE o.status = 'open' AND o.customer_ref = h.customer_ref AND o.charge_id < h.charge_id)
    ORDER BY next_attempt_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE charges h
SET asked = h.asked + 1, next_attempt_at = now() + $2::integer * interval '1 millisecond',
    sent_at = coalesce(h.sent_at, now())
FROM due WHERE h.charge_id = due.charge_id
RETURNING h.charge_id, h.merchant_id, h.connection_id, h.wallet_id, h.kind, h.amount_cents, h.currency, h.description,
          h.mode, h.processor, h.customer_ref, h.method_ref, h.attempt, h.asked, h.processor_ref, due.sent_at,
          extract(epoch FROM h.attempt_at)::bigint AS written_at_s,
          extract(epoch FROM now() - due.sent_at)::double precision AS sent_age_s

-- name: sending_again
UPDATE charges SET sent_at = now() WHERE charge_id = $1 AND attempt = $2 AND status = 'open'

-- name: ask_again
-- In $3 seconds.
UPDATE charges
SET next_attempt_at = now() + $3::double precision * interval '1 second',
    processor_ref = coalesce($4, processor_ref), updated_at = now()
WHERE charge_id = $1 AND attempt = $2 AND status = 'open'

-- name: told_of
-- Whether the processor tells of a charge of ours, as we wrote it.
SELECT 1 FROM charges WHERE charge_id = $1 AND mode = $2 AND processor = $3 AND amount_cents = $4 AND currency = $5

-- name: lock_connection
-- Of a charge, whatever has become of it: money that was taken is credited.
SELECT 1 FROM connections c WHERE c.connection_id = (SELECT h.connection_id FROM charges h WHERE h.charge_id = $1)
FOR NO KEY UPDATE

-- name: lock
-- `can_charge`: whether the customer may owe anything; null without a subscription.
SELECT h.charge_id, h.merchant_id, h.connection_id, h.wallet_id, w.shard, h.kind, h.amount_cents, h.currency, h.pot,
       h.credit_nano, h.credit_bundle_id, h.status, h.attempt, h.processor_ref,
       now() + coalesce((SELECT offset_us FROM test_clocks t WHERE t.merchant_id = h.merchant_id), 0)
           * interval '1 microsecond' AS merchant_now,
       (SELECT s.can_charge FROM subscriptions s WHERE s.connection_id = h.connection_id AND s.status = 'active')
           AS can_charge
FROM charges h JOIN wallets w USING (wallet_id)
WHERE h.charge_id = $1
FOR NO KEY UPDATE OF h

-- name: conclude
UPDATE charges SET status = $2, processor_ref = coalesce($3, processor_ref), decline_code = $4, updated_at = now()
WHERE charge_id = $1

-- name: limits_of
-- What the plan of a connection allows, if it has one.
SELECT p.overage = 'charge' AS charges_overage, p.overage_cap_nano
FROM subscriptions s JOIN plans p USING (plan_id) WHERE s.connection_id = $1 AND s.status = 'active'

-- name: set_can_charge
UPDATE subscriptions SET can_charge = $2 WHERE connection_id = $1 AND status = 'active'

-- name: set_limit
-- What the connection may owe from now on: as a turn, so that it comes to Redis in its order among the wallet's turns,
-- once, also where Redis is away.
WITH changed AS (
    UPDATE connections SET overage_limit_nano = $3 WHERE connection_id = $2 RETURNING merchant_id, wallet_id
)
INSERT INTO turns (turn_id, merchant_id, wallet_id, number, due_at, kind, keep_cycle, keep_bundle, credit_nano,
                   limit_nano, reset_meters)
SELECT $1, merchant_id, wallet_id, 0, $4, 'limit', true, true, 0, $3, false FROM changed

-- name: unsettled
SELECT count(*) AS charges, coalesce(extract(epoch FROM now() - min(attempt_at)), 0)::double precision AS oldest_s
FROM charges WHERE status = 'open'
