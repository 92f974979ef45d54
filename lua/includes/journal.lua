-- The shard's journal: one stream entry for each movement of a wallet, in order, with dense ids <n>-0.
-- The caller has checked that every number is below 2^53.

local journal = {}

-- Append one entry. `entry`: wallet, seq, kind, reference, at_ms, delta, position, body. Returns its number.
function journal.append(stream_key, counter_key, entry)
  local n = redis.call('INCR', counter_key)
  local d = entry.delta
  redis.call('XADD', stream_key, string.format('%.0f-0', n),
    'w', entry.wallet, 's', entry.seq, 'k', entry.kind, 'r', entry.reference, 't', entry.at_ms,
    'c', d.cycle, 'b', d.bundle, 'p', d.prepaid, 'o', d.overage, 'u', entry.position, 'd', entry.body)
  return n
end
