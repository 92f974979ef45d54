-- Subscriptions and the turns of their cycles (gateway/billing/subscriptions.py, turns.py, worker/cycles.py, resets.py).
--
-- Locks are taken in this order, so nobody waits for another in a circle: connection, plan, subscription. The worker,
-- which locks connection and subscription at once, waits for nobody.

-- name: lock_connection
SELECT connection_id FROM connections WHERE merchant_id = $1 AND connection_id = $2 AND deleted_at IS NULL
FOR NO KEY UPDATE;

-- name: connection
-- It, locked, and the merchant's time. A statement of its own: one that waits for a lock sees the clock as it was
-- before, when a cycle may have been turned that now began later.
SELECT c.connection_id, c.merchant_id, c.wallet_id, c.is_self, w.shard,
       clock_timestamp() + coalesce((SELECT offset_us FROM test_clocks t WHERE t.merchant_id = c.merchant_id), 0)
           * interval '1 microsecond' AS merchant_now
FROM connections c JOIN wallets w USING (wallet_id)
WHERE c.connection_id = $1;

-- name: connection_of
SELECT s.connection_id FROM subscriptions s JOIN connections c USING (connection_id)
WHERE c.merchant_id = $1 AND s.subscription_id = $2;

-- name: terms
SELECT p.plan_id, p.billing_interval, p.period_amount_nano, p.included_credit_nano, p.rollover_type,
       p.bundle_rollover_type, p.overage, p.overage_cap_nano, p.default_auto_top_up_bundle_id,
       p.archived_at IS NOT NULL AS archived
FROM plans p WHERE p.merchant_id = $1 AND p.plan_id = $2 AND p.deleted_at IS NULL
FOR SHARE;

-- name: standing
-- The connection's active subscription, locked, with the terms of its plan and of the one it is to change to.
SELECT s.subscription_id, s.connection_id, c.merchant_id, c.wallet_id, w.shard, s.status, s.can_charge, s.started_at,
       s.anchor_at, s.cycle_number, s.turns, s.cycle_start_at, s.cycle_end_at,
       s.auto_top_up_bundle_id, s.pending_type, s.pending_at, s.cancelled_at, s.ended_at,
       to_jsonb(p) AS terms, to_jsonb(q) AS pending_terms
FROM subscriptions s JOIN connections c USING (connection_id) JOIN wallets w USING (wallet_id)
JOIN plans p ON p.plan_id = s.plan_id LEFT JOIN plans q ON q.plan_id = s.pending_plan_id
WHERE s.connection_id = $1 AND s.status = 'active'
FOR NO KEY UPDATE OF s;

-- name: due
-- Locks those whose cycle has ended in real time, which is behind every merchant's.
SELECT s.subscription_id FROM subscriptions s JOIN connections c USING (connection_id)
WHERE s.status = 'active' AND s.cycle_end_at <= now()
ORDER BY s.cycle_end_at
LIMIT $1
FOR NO KEY UPDATE OF s, c SKIP LOCKED;

-- name: due_by_clock
-- The same, by the clocks of all merchants that have moved theirs, in any order: a merchant with many keeps no other
-- from its turn. Looked for one by one, so that the index by merchant and time is used.
WITH found AS MATERIALIZED (
    SELECT of_one.subscription_id
    FROM (SELECT merchant_id, now() + offset_us * interval '1 microsecond' AS merchant_now
          FROM test_clocks WHERE offset_us > 0 ORDER BY random()) t
    CROSS JOIN LATERAL (
        SELECT s.subscription_id FROM subscriptions s
        WHERE s.merchant_id = t.merchant_id AND s.status = 'active' AND s.cycle_end_at <= t.merchant_now
        ORDER BY s.cycle_end_at LIMIT $1) of_one
    LIMIT $1
)
SELECT s.subscription_id
FROM subscriptions s JOIN connections c USING (connection_id) JOIN test_clocks t ON t.merchant_id = s.merchant_id
WHERE s.subscription_id IN (SELECT subscription_id FROM found)
  AND s.status = 'active' AND s.cycle_end_at <= now() + t.offset_us * interval '1 microsecond'
FOR NO KEY UPDATE OF s, c SKIP LOCKED;

-- name: locked
-- Where subscriptions stand that this transaction has locked. A statement of its own: one that locks rows sees the plans
-- that it joins as they were before it waited for the lock.
SELECT s.subscription_id, s.connection_id, c.merchant_id, c.wallet_id, w.shard, s.status, s.can_charge, s.started_at,
       s.anchor_at, s.cycle_number, s.turns, s.cycle_start_at, s.cycle_end_at,
       s.auto_top_up_bundle_id, s.pending_type, s.pending_at, s.cancelled_at, s.ended_at,
       to_jsonb(p) AS terms, to_jsonb(q) AS pending_terms,
       now() + coalesce((SELECT offset_us FROM test_clocks t WHERE t.merchant_id = c.merchant_id), 0)
           * interval '1 microsecond' AS merchant_now
FROM subscriptions s JOIN connections c USING (connection_id) JOIN wallets w USING (wallet_id)
JOIN plans p ON p.plan_id = s.plan_id LEFT JOIN plans q ON q.plan_id = s.pending_plan_id
WHERE s.subscription_id = ANY ($1);

-- name: overdue
-- How long the cycle that ended first, in real time, has waited for its turn.
SELECT coalesce(extract(epoch FROM now() - min(cycle_end_at)), 0)::double precision AS overdue_s
FROM subscriptions WHERE status = 'active' AND cycle_end_at <= now();

-- name: insert
INSERT INTO subscriptions (subscription_id, connection_id, merchant_id, plan_id, started_at, anchor_at, cycle_start_at,
                           cycle_end_at, can_charge, auto_top_up_bundle_id)
VALUES ($1, $2, $3, $4, $5, $5, $5, $6, $7, $8);

-- name: move
-- Where subscriptions stand after their turns. One that is cancelled keeps its last cycle.
UPDATE subscriptions s
SET plan_id = u.plan_id, status = u.status, anchor_at = u.anchor_at, cycle_number = u.cycle_number, turns = u.turns,
    cycle_start_at = u.cycle_start_at, cycle_end_at = u.cycle_end_at,
    auto_top_up_bundle_id = u.auto_top_up_bundle_id, cancelled_at = u.cancelled_at, ended_at = u.ended_at,
    pending_type = u.pending_type, pending_plan_id = u.pending_plan_id, pending_at = u.pending_at
FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::integer[], $6::integer[], $7::timestamptz[],
            $8::timestamptz[], $9::text[], $10::timestamptz[], $11::timestamptz[], $12::text[], $13::text[],
            $14::timestamptz[])
  AS u (subscription_id, plan_id, status, anchor_at, cycle_number, turns, cycle_start_at, cycle_end_at,
        auto_top_up_bundle_id, cancelled_at, ended_at, pending_type, pending_plan_id, pending_at)
WHERE s.subscription_id = u.subscription_id;

-- name: limits
-- What the wallets of these connections may owe from now on: restored wallets read it here.
UPDATE connections c SET overage_limit_nano = u.limit_nano
FROM unnest($1::text[], $2::bigint[]) AS u (connection_id, limit_nano)
WHERE c.connection_id = u.connection_id AND c.overage_limit_nano <> u.limit_nano;

-- name: set_auto_top_up
UPDATE subscriptions SET auto_top_up_bundle_id = $2 WHERE subscription_id = $1;

-- name: bundle
-- Of the plan of a subscription.
SELECT b.credit_bundle_id, b.name, b.credit_nano
FROM credit_bundles b
WHERE b.credit_bundle_id = $1 AND b.plan_id = $2 AND b.deleted_at IS NULL;

-- name: insert_turns
INSERT INTO turns (turn_id, merchant_id, wallet_id, subscription_id, number, due_at, kind, keep_cycle, keep_bundle,
                   credit_nano, limit_nano, reset_meters)
SELECT u.turn_id, u.merchant_id, u.wallet_id, u.subscription_id, u.number, u.due_at, u.kind, u.keep_cycle, u.keep_bundle,
       u.credit_nano, u.limit_nano, u.reset_meters
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::timestamptz[], $7::text[],
            $8::boolean[], $9::boolean[], $10::bigint[], $11::bigint[], $12::boolean[])
    WITH ORDINALITY AS u (turn_id, merchant_id, wallet_id, subscription_id, number, due_at, kind, keep_cycle, keep_bundle,
                          credit_nano, limit_nano, reset_meters, place)
ORDER BY u.place;

-- name: owed_to
-- What waits for some wallets, in the order in which it is to be applied: their turns, and between them the credit
-- granted to the pots that turns let expire (`pot`; null of a turn).
SELECT o.owed_id, o.wallet_id, w.merchant_id, w.shard, o.pot, o.credit_nano, o.keep_cycle, o.keep_bundle, o.limit_nano,
       o.reset_meters, extract(epoch FROM now() - o.created_at)::double precision AS age_s
FROM (
    SELECT turn_id AS owed_id, turn_seq, wallet_id, created_at, NULL AS pot, credit_nano, keep_cycle, keep_bundle,
           limit_nano, reset_meters
    FROM turns WHERE applied_at IS NULL AND wallet_id = ANY ($1)
    UNION ALL
    SELECT grant_id, turn_seq, wallet_id, created_at, pot, amount_nano, NULL, NULL, NULL, NULL
    FROM grants WHERE applied_at IS NULL AND wallet_id = ANY ($1) AND pot IN ('cycle', 'bundle')
) o JOIN wallets w USING (wallet_id)
ORDER BY o.turn_seq;

-- name: pending_turns
-- A page behind $1 of the wallets with turns that are not known to be applied: the first of each, if older than $2 s and
-- no grant comes before it (worker.pending_grants).
SELECT t.turn_id AS owed_id, t.turn_seq, t.wallet_id, w.merchant_id, w.shard, NULL::text AS pot, t.credit_nano,
       t.keep_cycle, t.keep_bundle, t.limit_nano, t.reset_meters,
       extract(epoch FROM now() - t.created_at)::double precision AS age_s, coalesce(j.last_id, 0) AS flushed_number
FROM turns t JOIN wallets w USING (wallet_id) LEFT JOIN journal_cursors j ON j.shard = w.shard
WHERE t.applied_at IS NULL AND t.turn_seq > $1 AND t.created_at < now() - $2::integer * interval '1 second'
  AND NOT EXISTS (SELECT 1 FROM turns e
                  WHERE e.wallet_id = t.wallet_id AND e.applied_at IS NULL AND e.turn_seq < t.turn_seq)
  AND NOT EXISTS (SELECT 1 FROM grants g WHERE g.wallet_id = t.wallet_id AND g.applied_at IS NULL
                    AND g.turn_seq < t.turn_seq AND g.pot IN ('cycle', 'bundle'))
ORDER BY t.turn_seq
LIMIT $3;

-- name: confirm_recorded
-- Of these turns, those that the ledger holds: whoever recorded them did not say so.
UPDATE turns t SET applied_at = l.at
FROM ledger_entries l
WHERE t.turn_id = ANY ($1) AND t.applied_at IS NULL
  AND l.wallet_id = t.wallet_id AND l.kind = 'turn' AND l.reference = t.turn_id
RETURNING t.turn_id;

-- name: resets_due
-- Customers whose month has ended in real time. One with a subscription has its meters reset with that. `used`: the
-- record has counters; Redis may have lost them.
SELECT c.connection_id, c.merchant_id, c.wallet_id, w.shard, c.created_at, c.overage_limit_nano,
       now() + coalesce((SELECT offset_us FROM test_clocks t WHERE t.merchant_id = c.merchant_id), 0)
           * interval '1 microsecond' AS merchant_now,
       EXISTS (SELECT 1 FROM wallet_meters m WHERE m.wallet_id = c.wallet_id) AS used,
       EXISTS (SELECT 1 FROM subscriptions s WHERE s.connection_id = c.connection_id AND s.status = 'active') AS subscribed
FROM connections c JOIN wallets w USING (wallet_id)
WHERE c.deleted_at IS NULL AND c.meters_reset_at <= now()
ORDER BY c.meters_reset_at
LIMIT $1
FOR NO KEY UPDATE OF c SKIP LOCKED;

-- name: resets_due_by_clock
-- The same, by the clocks that are ahead (see due_by_clock).
WITH found AS MATERIALIZED (
    SELECT of_one.connection_id
    FROM (SELECT merchant_id, now() + offset_us * interval '1 microsecond' AS merchant_now
          FROM test_clocks WHERE offset_us > 0 ORDER BY random()) t
    CROSS JOIN LATERAL (
        SELECT c.connection_id FROM connections c
        WHERE c.merchant_id = t.merchant_id AND c.deleted_at IS NULL AND c.meters_reset_at <= t.merchant_now
        ORDER BY c.meters_reset_at LIMIT $1) of_one
    LIMIT $1
)
SELECT c.connection_id, c.merchant_id, c.wallet_id, w.shard, c.created_at, c.overage_limit_nano,
       now() + t.offset_us * interval '1 microsecond' AS merchant_now,
       EXISTS (SELECT 1 FROM wallet_meters m WHERE m.wallet_id = c.wallet_id) AS used,
       EXISTS (SELECT 1 FROM subscriptions s WHERE s.connection_id = c.connection_id AND s.status = 'active') AS subscribed
FROM connections c JOIN wallets w USING (wallet_id) JOIN test_clocks t ON t.merchant_id = c.merchant_id
WHERE c.connection_id IN (SELECT connection_id FROM found)
  AND c.deleted_at IS NULL AND c.meters_reset_at <= now() + t.offset_us * interval '1 microsecond'
FOR NO KEY UPDATE OF c SKIP LOCKED;

-- name: move_resets
UPDATE connections c SET meters_reset_at = u.meters_reset_at
FROM unnest($1::text[], $2::timestamptz[]) AS u (connection_id, meters_reset_at)
WHERE c.connection_id = u.connection_id;
