-- Test clocks (gateway/billing/clock.py). A merchant's time is real time plus its offset.

-- name: now
SELECT now() + coalesce((SELECT offset_us FROM test_clocks WHERE merchant_id = $1), 0) * interval '1 microsecond';

-- name: lock
-- The merchant, for one that moves its clock.
SELECT mode FROM merchants WHERE merchant_id = $1 FOR NO KEY UPDATE;

-- name: locked
-- Its clock. A statement of its own: one that waits for a lock sees the clock as it was before.
SELECT coalesce((SELECT offset_us FROM test_clocks WHERE merchant_id = $1), 0) AS offset_us,
       clock_timestamp() AS real_now;

-- name: move
INSERT INTO test_clocks (merchant_id, offset_us) VALUES ($1, $2)
ON CONFLICT (merchant_id) DO UPDATE SET offset_us = $2, updated_at = now();

-- name: read
SELECT m.merchant_id, m.mode, m.name,
       now() + coalesce(c.offset_us, 0) * interval '1 microsecond' AS merchant_now,
       coalesce(c.offset_us, 0) AS offset_us,
       (SELECT count(*) FROM subscriptions s WHERE s.merchant_id = m.merchant_id AND s.status = 'active'
            AND s.cycle_end_at <= now() + coalesce(c.offset_us, 0) * interval '1 microsecond')
     + (SELECT count(*) FROM connections d WHERE d.merchant_id = m.merchant_id AND d.deleted_at IS NULL
            AND d.meters_reset_at <= now() + coalesce(c.offset_us, 0) * interval '1 microsecond')
     + (SELECT count(*) FROM turns t WHERE t.merchant_id = m.merchant_id AND t.applied_at IS NULL) AS turns_due
FROM merchants m LEFT JOIN test_clocks c USING (merchant_id)
WHERE m.merchant_id = $1;

-- name: test_merchants
SELECT merchant_id, name FROM merchants WHERE mode = 'test' ORDER BY created_at, merchant_id LIMIT 100;

-- name: times
-- Of all test clocks that are ahead: months that rows may be of.
SELECT DISTINCT date_trunc('month', now() + offset_us * interval '1 microsecond', 'UTC') AS month
FROM test_clocks WHERE offset_us > 0;
