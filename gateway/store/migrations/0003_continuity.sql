-- What it takes to notice that Redis came back with less than was recorded here, and to restore wallets from here.

-- The journal number of a wallet's latest entry: where a shard's counter is below it, Redis has lost that entry.
ALTER TABLE wallets ADD COLUMN last_number bigint NOT NULL DEFAULT 0;
UPDATE wallets w SET last_number = c.last_id FROM journal_cursors c WHERE c.shard = w.shard AND w.last_seq > 0;
CREATE INDEX wallets_shard ON wallets (shard, wallet_id);

-- The meter's counter before the movement, and by how much the movement advanced it.
ALTER TABLE ledger_entries ADD COLUMN position bigint NOT NULL DEFAULT 0, ADD COLUMN units bigint NOT NULL DEFAULT 0;

-- The durable twin of a wallet's tier counters: units used in the cycle, by meter. Written by the flusher only.
CREATE TABLE wallet_meters (
    wallet_id text NOT NULL,
    meter_id  text NOT NULL,
    units     bigint NOT NULL,
    PRIMARY KEY (wallet_id, meter_id)
);
INSERT INTO wallet_meters (wallet_id, meter_id, units)
SELECT r.wallet_id, r.meter_id, max(r.tier_position + CASE v.definition ->> 'tier_type'
           WHEN 'requests' THEN 1
           WHEN 'minutes' THEN coalesce((r.usage ->> 'input_us')::bigint, 0)
                             + coalesce((r.usage ->> 'output_us')::bigint, 0)
           WHEN 'characters_1m' THEN coalesce((r.usage ->> 'input_characters')::bigint, 0)
                                   + coalesce((r.usage ->> 'output_characters')::bigint, 0)
           ELSE coalesce((r.usage ->> 'output_tokens')::bigint, 0)
                + CASE WHEN v.definition ->> 'token_basis' = 'output' THEN 0
                       ELSE coalesce((r.usage ->> 'input_tokens')::bigint, 0) END
       END)
FROM requests r JOIN meter_versions v ON v.meter_id = r.meter_id AND v.version = r.meter_version
WHERE r.billing_mode IN ('customer', 'report')
  AND r.ending IN ('completed', 'client_gone', 'truncated', 'cancelled', 'error_event', 'upstream_timeout')
GROUP BY r.wallet_id, r.meter_id;

-- The Redis servers that were let into use, and what they lacked. The latest is the one in use.
CREATE TABLE ledger_servers (
    acceptance_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id         text NOT NULL,        -- another one for each start of a server
    replication_id text NOT NULL,        -- another one after it was a replica, and took over another's data
    accepted_at    timestamptz NOT NULL DEFAULT now(),
    lost_entries   bigint NOT NULL,      -- journal entries that are recorded here and were not in it
    marked_wallets bigint NOT NULL       -- wallets that were in it in an older state, and were taken out of use
);
