-- name: recorded
-- Has this request a row, and how far is its wallet's shard flushed?
SELECT EXISTS (SELECT 1 FROM request_index WHERE merchant_id = $2 AND request_id = $3) AS recorded,
       coalesce((SELECT last_id FROM journal_cursors WHERE shard = $1), 0) AS flushed_number

-- name: highest_shard
-- With anything recorded of it.
SELECT max(shard) AS shard FROM journal_cursors WHERE last_id > 0
