-- Webhooks: the outbox (gateway/billing/outbox.py).

-- name: tell
-- One event ($1, ids $2) of each of the connections $3, in the transaction of whatever it tells. Rows are locked in the
-- order of connection and endpoint, here and below, so that two transactions never wait for each other in a circle.
WITH told AS (
    INSERT INTO webhook_deliveries (event_id, webhook_id, merchant_id, connection_id, event, data, due_at)
    SELECT e.event_id, w.webhook_id, w.merchant_id, e.connection_id, $1, $5, now()
    FROM unnest($2::text[], $3::text[], $4::text[]) AS e (event_id, connection_id, merchant_id)
    JOIN webhooks w ON w.merchant_id = e.merchant_id
    WHERE w.deleted_at IS NULL AND w.status = 'active' AND (w.events IS NULL OR $1 = ANY (w.events))
    ORDER BY e.connection_id COLLATE "C", w.webhook_id COLLATE "C"
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
          d.created_at, d.body, d.attempts, d.first_attempt_at, d.last_attempt_at

-- name: drop_claims
-- Lanes in which nothing waits.
DELETE FROM webhook_lanes l USING unnest($1::text[], $2::text[], $3::uuid[]) AS c (webhook_id, connection_id, claim)
WHERE l.webhook_id = c.webhook_id AND l.connection_id = c.connection_id AND l.claim = c.claim

-- name: endpoint
-- For 24 hours after a rotation the secret before signs, too; also that before the first of several (see `rotate`).
SELECT w.webhook_id, w.url, w.signature_style, w.event_style, w.secret_number,
       CASE WHEN w.secret_rotated_at > now() - interval '24 hours'
            THEN coalesce(w.secret_number_before, w.secret_number - 1) END AS secret_number_before, m.mode
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

-- name: postpone
-- Nothing was sent: this was no attempt.
UPDATE webhook_deliveries
SET due_at = now() + $2::integer * interval '1 second', attempts = attempts - 1, last_error = $3,
    first_attempt_at = CASE WHEN attempts > 1 THEN first_attempt_at END
WHERE sequence = $1

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
-- Since $2, when this attempt began: what was delivered before it counts.
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
-- A page of what waits for a deleted endpoint, and of what has waited $1 days for one that is paused, is dead. Here and
-- below, what somebody works on is left for the next time.
UPDATE webhook_deliveries SET status = 'dead', finished_at = now() WHERE sequence IN (
    SELECT d.sequence FROM webhooks w
    JOIN webhook_deliveries d ON d.webhook_id = w.webhook_id AND d.status = 'waiting'
    WHERE w.deleted_at IS NOT NULL
       OR (w.status = 'paused' AND d.created_at < now() - $1::integer * interval '1 day')
    LIMIT $2 FOR UPDATE OF d SKIP LOCKED)

-- name: drop_lanes
-- A page of the lanes of deleted endpoints.
DELETE FROM webhook_lanes WHERE (webhook_id, connection_id) IN (
    SELECT l.webhook_id, l.connection_id FROM webhooks w JOIN webhook_lanes l USING (webhook_id)
    WHERE w.deleted_at IS NOT NULL
    LIMIT $1 FOR UPDATE OF l SKIP LOCKED)

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
-- What waits for the endpoint may be tried at once: a page of it, at most $3 lanes behind that of the connection $2.
-- Returns how many these were, and the last one.
WITH page AS MATERIALIZED (
    SELECT connection_id FROM webhook_lanes WHERE webhook_id = $1 AND connection_id > $2
    ORDER BY connection_id LIMIT $3
), locked AS MATERIALIZED (
    SELECT l.connection_id FROM webhook_lanes l JOIN page USING (connection_id)
    WHERE l.webhook_id = $1 AND l.claim IS NULL AND l.due_at > now()
    ORDER BY l.connection_id COLLATE "C" FOR UPDATE OF l
), hurried AS (
    UPDATE webhook_lanes l SET due_at = now() FROM locked
    WHERE l.webhook_id = $1 AND l.connection_id = locked.connection_id
)
SELECT count(*) AS lanes, max(connection_id) AS last FROM page

-- name: rotate
-- One that follows another within 24 hours leaves the secret that receivers had before both.
UPDATE webhooks
SET secret_number = secret_number + 1, secret_rotated_at = now(),
    secret_number_before = CASE WHEN secret_rotated_at > now() - interval '24 hours' THEN coalesce(secret_number_before, secret_number - 1)
                                ELSE secret_number END
WHERE merchant_id = $1 AND webhook_id = $2 AND deleted_at IS NULL
RETURNING *

-- name: delete
-- A mark, whatever waits: nothing is sent or written from now on, and `expire` and `drop_lanes` clear away the rest.
UPDATE webhooks SET deleted_at = now() WHERE merchant_id = $1 AND webhook_id = $2 AND deleted_at IS NULL
RETURNING webhook_id

-- name: deliveries
-- {scope}: of one status, if that is asked for.
SELECT * FROM webhook_deliveries
WHERE webhook_id = $1 AND (created_at, event_id) < ($2, $3){scope}
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
