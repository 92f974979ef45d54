-- Redis compared with the record, and wallets restored from it (gateway/billing/continuity.py, restore.py).

-- name: server
-- Whether the server $1 (run id), $2 (replication id) is the one in use, and whether one of its run id ever was.
SELECT coalesce((SELECT (run_id, replication_id) = ($1, $2)
                 FROM ledger_servers ORDER BY acceptance_id DESC LIMIT 1), false) AS in_use,
       EXISTS (SELECT 1 FROM ledger_servers WHERE run_id = $1) AS known

-- name: accept_server
INSERT INTO ledger_servers (run_id, replication_id, lost_entries, marked_wallets) VALUES ($1, $2, $3, $4)

-- name: lock_cursors
-- Waits for batches that are being recorded, and keeps others from beginning.
SELECT shard, last_id FROM journal_cursors WHERE $1::integer[] IS NULL OR shard = ANY($1) ORDER BY shard FOR UPDATE

-- name: behind
-- Wallets whose latest entries Redis cannot have: it has given out journal numbers up to $2 only.
SELECT wallet_id, last_seq FROM wallets
WHERE shard = $1 AND last_number > $2 AND wallet_id > $3 ORDER BY wallet_id LIMIT $4

-- name: page
SELECT wallet_id, merchant_id, last_seq FROM wallets WHERE shard = $1 AND wallet_id > $2 ORDER BY wallet_id LIMIT $3

-- name: wallets
SELECT wallet_id, merchant_id, shard, last_seq, cycle_nano, bundle_nano, prepaid_nano, overage_nano,
       (SELECT coalesce(jsonb_object_agg(m.meter_id, m.units), '{}') FROM wallet_meters m
        WHERE m.wallet_id = w.wallet_id) AS units
FROM wallets w WHERE wallet_id = ANY($1) AND shard = $2 ORDER BY wallet_id

-- name: connections
-- Locked until the wallets are restored: who deletes one of these connections meanwhile waits, and then finds its
-- wallet in use. One that a checkout hides is not deleted.
SELECT wallet_id, overage_limit_nano, disabled_at IS NOT NULL AS disabled,
       coalesce(deleted_at < 'infinity', false) AS deleted
FROM connections WHERE wallet_id = ANY($1) FOR SHARE

-- name: spend_keys
-- Of these wallets, revoked ones too.
SELECT spend_key_id FROM spend_keys WHERE wallet_id = ANY($1)

-- name: shard_of
SELECT shard FROM wallets WHERE wallet_id = $1

-- name: endings
-- A page, behind ($3, $4), of the entries of wallets ($1) behind the sequence numbers ($2) that Redis has of them.
-- Of a wallet that Redis does not hold at all ($2: -1) none older than $5 seconds: it has no hold that could come back.
-- A late settlement's amount is the whole charge of its request. The graduated fee of an expiry's progress counts when
-- the call is settled after all.
SELECT l.wallet_id, l.seq, l.kind, l.reference, l.position, l.units,
       extract(epoch FROM now() - l.at)::double precision AS age_s,
       (CASE WHEN l.kind = 'late' THEN (
            SELECT sum(e.overage_delta - e.cycle_delta - e.bundle_delta - e.prepaid_delta)
            FROM ledger_entries e WHERE e.wallet_id = l.wallet_id AND e.reference = l.reference)
        ELSE l.overage_delta - l.cycle_delta - l.bundle_delta - l.prepaid_delta END)::bigint AS amount_nano,
       (CASE WHEN l.kind = 'expired' THEN (
            SELECT r.fee_nano FROM wallets w
            JOIN request_index i ON i.merchant_id = w.merchant_id AND i.request_id = l.reference
            JOIN requests r ON r.merchant_id = i.merchant_id AND r.request_id = i.request_id
                           AND r.created_at = i.created_at
            WHERE w.wallet_id = l.wallet_id) END) AS fee_nano
FROM unnest($1::text[], $2::bigint[]) AS k (wallet_id, seq)
JOIN ledger_entries l ON l.wallet_id = k.wallet_id AND l.seq > k.seq
WHERE (l.wallet_id, l.seq) > ($3::text, $4::bigint)
  AND (k.seq >= 0 OR l.at > now() - $5::integer * interval '1 second')
ORDER BY l.wallet_id, l.seq LIMIT $6

-- name: references
-- Which of these movements ($1 wallet, $2 kind, $3 reference) the ledger holds already, under whatever number.
SELECT l.wallet_id, l.kind, l.reference FROM ledger_entries l
JOIN unnest($1::text[], $2::text[], $3::text[]) AS k (wallet_id, kind, reference)
  ON l.wallet_id = k.wallet_id AND l.kind = k.kind AND l.reference = k.reference
