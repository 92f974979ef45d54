-- Webhooks: the outbox (gateway/billing/outbox.py).

-- name: tell
-- One event of one connection, in the transaction of whatever it tells. Rows are locked in the order of connection and
-- endpoint, here and below, so that two transactions never wait for each other in a circle.
WITH told AS (
    INSERT INTO webhook_deliveries (event_id, webhook_id, merchant_id, connection_id, event, data, due_at)
    SELECT $1, w.webhook_id, w.merchant_id, $4, $3, $5, now()
    FROM webhooks w
    WHERE w.merchant_id = $2 AND w.deleted_at IS NULL AND w.status = 'active'
      AND (w.events IS NULL OR $3 = ANY (w.events))
    ORDER BY w.webhook_id COLLATE "C"
    ON CONFLICT DO NOTHING
    RETURNING webhook_id, connection_id, due_at
)
INSERT INTO webhook_lanes (webhook_id, connection_id, due_at) SELECT webhook_id, connection_id, due_at FROM told
ON CONFLICT (webhook_id, connection_id) DO UPDATE SET due_at = webhook_lanes.due_at

-- name: tell_balances
-- The balances of these wallets have changed. Where no endpoint exists at all, nothing is looked up. A row that is open
-- will tell the balance of then. The connections first, whatever the planner believes about the number of endpoints.
WITH changed AS MATERIALIZED (
    SELECT connection_id, merchant_id FROM connections
    WHERE wallet_id = ANY ($1::text[]) AND NOT is_self AND deleted_at IS NULL
      AND (SELECT EXISTS (SELECT 1 FROM webhooks WHERE deleted_at IS NULL))
), told AS (
    INSERT INTO webhook_deliveries (event_id, webhook_id, merchant_id, connection_id, event, due_at)
    SELECT 'evt_' || replace(gen_random_uuid()::text, '-', ''), w.webhook_id, w.merchant_id, c.connection_id,
           'connection.wallet.balance.updated', now() + interval '1 second'
    FROM changed c
    JOIN webhooks w ON w.merchant_id = c.merchant_id
    WHERE w.deleted_at IS NULL AND w.status = 'active'
      AND (w.events IS NULL OR 'connection.wallet.balance.updated' = ANY (w.events))
    ORDER BY c.connection_id COLLATE "C", w.webhook_id COLLATE "C"
    ON CONFLICT DO NOTHING
    RETURNING webhook_id, connection_id, due_at
)
INSERT INTO webhook_lanes (webhook_id, connection_id, due_at) SELECT webhook_id, connection_id, due_at FROM told
ON CONFLICT (webhook_id, connection_id) DO UPDATE SET due_at = webhook_lanes.due_at

-- What the deliverer does (gateway/webhooks/claims.py).

-- name: claim_lanes
-- Lanes that are due, at most $1 in all and $2 an endpoint (1 while it fails) less what is under way for it ($3, $4), for
-- $5 milliseconds. The endpoints are found one by one in the index, so that one with many lanes costs the others nothing.
WITH RECURSIVE endpoints AS (
    (SELECT webhook_id FROM webhook_lanes ORDER BY webhook_id LIMIT 1)
    UNION ALL
    SELECT (SELECT l.webhook_id FROM webhook_lanes l WHERE l.webhook_id > e.webhook_id ORDER BY l.webhook_id LIMIT 1)
    FROM endpoints e WHERE e.webhook_id IS NOT NULL
), due AS MATERIALIZED (
    SELECT lane.webhook_id, lane.connection_id
    FROM (SELECT e.webhook_id, greatest(CASE WHEN w.failing_since IS NULL THEN $2::integer ELSE 1 END
                                        - coalesce(busy.calls, 0), 0) AS room
          FROM endpoints e
          JOIN webhooks w ON w.webhook_id = e.webhook_id AND w.status = 'active' AND w.deleted_at IS NULL
          LEFT JOIN unnest($3::text[], $4::integer[]) AS busy (webhook_id, calls) ON busy.webhook_id = e.webhook_id
          ORDER BY random()) endpoint
    CROSS JOIN LATERAL (
        SELECT l.webhook_id, l.connection_id FROM webhook_lanes l
        WHERE l.webhook_id = endpoint.webhook_id AND l.due_at <= now()
        ORDER BY l.due_at LIMIT endpoint.room
        FOR UPDATE SKIP LOCKED) lane
    LIMIT $1
)
UPDATE webhook_lanes l SET due_at = now() + $5::integer * interval '1 millisecond', claim = gen_random_uuid()
FROM due WHERE l.webhook_id = due.webhook_id AND l.connection_id = due.connection_id
RETURNING l.webhook_id, l.connection_id, l.claim

-- name: claim_heads
-- The first waiting event of each lane: it is being sent, so what changes from now on is another event.
WITH heads AS (
    SELECT c.claim, first.sequence
    FROM unnest($1::text[], $2::text[], $3::uuid[]) AS c (webhook_id, connection_id, claim)
    CROSS JOIN LATERAL (
        SELECT d.sequence FROM webhook_deliveries d
        WHERE d.webhook_id = c.webhook_id AND d.connection_id = c.connection_id AND d.status = 'waiting'
        ORDER BY d.sequence LIMIT 1) first
)
UPDATE webhook_deliveries d
SET open = false, attempts = d.attempts + 1, last_attempt_at = now(),
    first_attempt_at = coalesce(d.first_attempt_at, now())
FROM heads
WHERE d.sequence = heads.sequence
RETURNING heads.claim, d.sequence, d.event_id, d.webhook_id, d.merchant_id, d.connection_id, d.event, d.data,
          d.created_at, d.body, d.attempts, d.first_attempt_at

-- name: drop_claims
-- Lanes in which nothing waits.
DELETE FROM webhook_lanes l USING unnest($1::text[], $2::text[], $3::uuid[]) AS c (webhook_id, connection_id, claim)
WHERE l.webhook_id = c.webhook_id AND l.connection_id = c.connection_id AND l.claim = c.claim

-- name: endpoint
SELECT w.webhook_id, w.url, w.signature_style, w.event_style, w.secret_number, w.secret_rotated_at, m.mode
FROM webhooks w JOIN merchants m ON m.merchant_id = w.merchant_id
WHERE w.webhook_id = $1

-- name: keep_body
-- The first one stays, whoever else writes one.
UPDATE webhook_deliveries SET body = coalesce(body, $2) WHERE sequence = $1 RETURNING body

-- name: lock_lane
SELECT 1 FROM webhook_lanes WHERE webhook_id = $1 AND connection_id = $2 AND claim = $3 FOR UPDATE

-- name: finish
UPDATE webhook_deliveries
SET status = $2, last_status_code = $3, last_error = $4, finished_at = now()
WHERE sequence = $1

-- name: fail
UPDATE webhook_deliveries
SET due_at = now() + $2::integer * interval '1 second', last_status_code = $3, last_error = $4
WHERE sequence = $1
RETURNING due_at

-- name: postpone
-- Nothing was sent: this was no attempt.
UPDATE webhook_deliveries
SET due_at = now() + $2::integer * interval '1 second', attempts = attempts - 1, last_error = $3
WHERE sequence = $1
RETURNING due_at

-- name: next_due
SELECT due_at FROM webhook_deliveries
WHERE webhook_id = $1 AND connection_id = $2 AND status = 'waiting' ORDER BY sequence LIMIT 1

-- name: free_lane
UPDATE webhook_lanes SET due_at = $3, claim = NULL WHERE webhook_id = $1 AND connection_id = $2

-- name: drop_lane
DELETE FROM webhook_lanes WHERE webhook_id = $1 AND connection_id = $2

-- name: works
UPDATE webhooks SET failing_since = NULL WHERE webhook_id = $1 AND failing_since IS NOT NULL

-- name: fails
-- Since $2, the first attempt of what failed.
UPDATE webhooks SET failing_since = $2 WHERE webhook_id = $1 AND failing_since IS NULL

-- name: give_up
-- An endpoint that said it is gone, or to which nothing was delivered since the first attempt ($3) of what is dead now.
UPDATE webhooks SET status = 'paused', paused_reason = $2
WHERE webhook_id = $1 AND status = 'active' AND ($3::timestamptz IS NULL OR failing_since <= $3)
RETURNING webhook_id

-- name: forget
-- A page of the log that is older than $1 days.
DELETE FROM webhook_deliveries WHERE sequence IN (
    SELECT sequence FROM webhook_deliveries
    WHERE status <> 'waiting' AND finished_at < now() - $1::integer * interval '1 day'
    LIMIT $2)

-- name: expire
-- What waits for an endpoint that has been paused or deleted for so long is dead.
UPDATE webhook_deliveries SET status = 'dead', finished_at = now() WHERE sequence IN (
    SELECT d.sequence FROM webhooks w
    JOIN webhook_deliveries d ON d.webhook_id = w.webhook_id AND d.status = 'waiting'
    WHERE (w.status = 'paused' OR w.deleted_at IS NOT NULL)
      AND d.created_at < now() - $1::integer * interval '1 day'
    LIMIT $2)

-- name: waiting
SELECT count(*) AS events, coalesce(extract(epoch FROM now() - min(created_at)), 0)::double precision AS oldest_s
FROM (SELECT created_at FROM webhook_deliveries WHERE status = 'waiting' LIMIT $1) waiting

-- name: connection
-- What an event shows of a connection, also of one that is deleted: the columns of `connections.find`, and the
-- merchant's time.
SELECT c.connection_id, c.reference_id, c.is_self, c.phone, c.email, c.first_name, c.last_name, c.metadata,
       c.overage_limit_nano, c.created_at, c.wallet_id, w.shard,
       s.subscription_id, s.plan_id, s.status AS subscription_status, s.cycle_start_at, s.cycle_end_at,
       p.name AS plan_name, now() + coalesce(t.offset_us, 0) * interval '1 microsecond' AS merchant_now
FROM connections c
JOIN wallets w USING (wallet_id)
LEFT JOIN subscriptions s ON s.connection_id = c.connection_id AND s.status = 'active'
LEFT JOIN plans p ON p.plan_id = s.plan_id
LEFT JOIN test_clocks t ON t.merchant_id = c.merchant_id
WHERE c.merchant_id = $1 AND c.connection_id = $2

-- What merchants do with their endpoints (gateway/api/webhooks.py) and the log (gateway/api/webhook_deliveries.py).

-- name: lock_merchant
SELECT 1 FROM merchants WHERE merchant_id = $1 FOR NO KEY UPDATE

-- name: count
SELECT count(*) FROM webhooks WHERE merchant_id = $1 AND deleted_at IS NULL

-- name: create
INSERT INTO webhooks (webhook_id, merchant_id, name, url, signature_style, event_style, events)
VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING *

-- name: page
SELECT * FROM webhooks
WHERE merchant_id = $1 AND deleted_at IS NULL AND (created_at, webhook_id) < ($2, $3)
ORDER BY created_at DESC, webhook_id DESC
LIMIT $4

-- name: find
SELECT * FROM webhooks WHERE merchant_id = $1 AND webhook_id = $2 AND deleted_at IS NULL

-- name: lock
SELECT * FROM webhooks WHERE merchant_id = $1 AND webhook_id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE

-- name: change
UPDATE webhooks
SET name = $2, url = $3, signature_style = $4, event_style = $5, events = $6
WHERE webhook_id = $1

-- name: pause
UPDATE webhooks SET status = 'paused', paused_reason = 'merchant' WHERE webhook_id = $1 AND status = 'active'

-- name: resume
UPDATE webhooks SET status = 'active', paused_reason = NULL, failing_since = NULL WHERE webhook_id = $1

-- name: hurry
-- What waits for the endpoint may be tried at once.
WITH locked AS MATERIALIZED (
    SELECT connection_id FROM webhook_lanes WHERE webhook_id = $1 AND claim IS NULL AND due_at > now()
    ORDER BY connection_id COLLATE "C" FOR UPDATE
)
UPDATE webhook_lanes l SET due_at = now() FROM locked
WHERE l.webhook_id = $1 AND l.connection_id = locked.connection_id

-- name: rotate
UPDATE webhooks SET secret_number = secret_number + 1, secret_rotated_at = now()
WHERE merchant_id = $1 AND webhook_id = $2 AND deleted_at IS NULL
RETURNING *

-- name: delete
UPDATE webhooks SET deleted_at = now() WHERE merchant_id = $1 AND webhook_id = $2 AND deleted_at IS NULL
RETURNING webhook_id

-- name: drop_lanes
WITH locked AS MATERIALIZED (
    SELECT connection_id FROM webhook_lanes WHERE webhook_id = $1 ORDER BY connection_id COLLATE "C" FOR UPDATE
)
DELETE FROM webhook_lanes l USING locked WHERE l.webhook_id = $1 AND l.connection_id = locked.connection_id

-- name: drop_waiting
UPDATE webhook_deliveries SET status = 'dead', finished_at = now() WHERE webhook_id = $1 AND status = 'waiting'

-- name: deliveries
SELECT * FROM webhook_deliveries
WHERE webhook_id = $1 AND (created_at, event_id) < ($2, $3) AND ($5::text IS NULL OR status = $5)
ORDER BY created_at DESC, event_id DESC
LIMIT $4

-- name: lane
-- The lane before the event, always: a worker that claims locks them in this order, too.
SELECT claim FROM webhook_lanes WHERE webhook_id = $1 AND connection_id = $2 FOR UPDATE

-- name: resend
-- To be tried at once, with all attempts ahead of it, before what waits behind it.
UPDATE webhook_deliveries
SET status = 'waiting', due_at = now(), finished_at = NULL, open = false, attempts = 0, first_attempt_at = NULL
WHERE webhook_id = $1 AND event_id = $2
RETURNING *

-- name: open_lane
INSERT INTO webhook_lanes (webhook_id, connection_id, due_at) VALUES ($1, $2, now())
ON CONFLICT (webhook_id, connection_id) DO UPDATE
SET due_at = CASE WHEN webhook_lanes.claim IS NULL THEN excluded.due_at ELSE webhook_lanes.due_at END

-- name: delivery
SELECT * FROM webhook_deliveries WHERE webhook_id = $1 AND event_id = $2
