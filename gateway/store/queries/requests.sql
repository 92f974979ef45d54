-- name: find
SELECT r.*, i.fingerprint
FROM request_index i
JOIN requests r ON r.merchant_id = i.merchant_id AND r.request_id = i.request_id AND r.created_at = i.created_at
WHERE i.merchant_id = $1 AND i.request_id = $2;

-- name: page
-- `created_at <= $2` repeats the row comparison for the pruning of partitions.
SELECT r.*
FROM requests r
WHERE r.merchant_id = $1 AND (r.created_at, r.request_id) < ($2, $3) AND r.created_at <= $2{scope}
ORDER BY r.created_at DESC, r.request_id DESC
LIMIT $4;

-- name: page_of_recent
-- Metadata that many rows have: look at the newest $5 rows only.
SELECT r.*
FROM (
    SELECT *
    FROM requests
    WHERE merchant_id = $1 AND (created_at, request_id) < ($2, $3) AND created_at <= $2{scope}
    ORDER BY created_at DESC, request_id DESC
    LIMIT $5
) r
WHERE true{pairs}
ORDER BY r.created_at DESC, r.request_id DESC
LIMIT $4;

-- name: newest
-- Of all rows behind a place and since $4.
SELECT created_at
FROM requests
WHERE merchant_id = $1 AND (created_at, request_id) < ($2, $3) AND created_at <= $2 AND created_at >= $4
ORDER BY created_at DESC, request_id DESC
LIMIT 1;

-- name: few_of_month
-- By the index of metadata, of at most $6 rows since $5: `matches` tells whether these are all.
WITH found AS MATERIALIZED (
    SELECT *
    FROM requests
    WHERE merchant_id = $1 AND (created_at, request_id) < ($2, $3) AND created_at <= $2 AND created_at >= $5{scope}{pairs}
    LIMIT $6
)
SELECT f.*, (SELECT count(*) FROM found) AS matches
FROM found f
ORDER BY f.created_at DESC, f.request_id DESC
LIMIT $4;

-- name: many_of_month
-- The same in order.
SELECT r.*
FROM requests r
WHERE merchant_id = $1 AND (created_at, request_id) < ($2, $3) AND created_at <= $2 AND created_at >= $5{scope}{pairs}
ORDER BY r.created_at DESC, r.request_id DESC
LIMIT $4;

-- name: cursors
SELECT shard, last_id FROM journal_cursors;
