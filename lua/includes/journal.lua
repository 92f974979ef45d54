-- The shard's journal: one stream entry for each movement of a wallet, in order, with dense ids <n>-0.
-- The caller has checked that every number is below 2^53.

local journal = {}

local function add(stream_key, n, entry)
  local d = entry.delta
  if entry.spent then
    return redis.pcall('XADD', stream_key, string.format('%.0f-0', n),
      'w', entry.wallet, 's', entry.seq, 'k', entry.kind, 'r', entry.reference, 't', entry.at_ms,
      'c', d.cycle, 'b', d.bundle, 'p', d.prepaid, 'o', d.overage,
      'u', entry.position, 'm', entry.meter or '', 'q', entry.units or 0, 'd', entry.body,
      'y', entry.key, 'z', entry.spent, 'x', entry.requests, 'v', entry.day)
  end
  return redis.pcall('XADD', stream_key, string.format('%.0f-0', n),
    'w', entry.wallet, 's', entry.seq, 'k', entry.kind, 'r', entry.reference, 't', entry.at_ms,
    'c', d.cycle, 'b', d.bundle, 'p', d.prepaid, 'o', d.overage,
    'u', entry.position, 'm', entry.meter or '', 'q', entry.units or 0, 'd', entry.body)
end

local function failed(reply)
  return type(reply) == 'table' and reply.err
end

-- The last number the stream was given, also where its entries have been trimmed; 0 where there is no stream.
local function last_number(stream_key)
  local info = redis.pcall('XINFO', 'STREAM', stream_key)
  if failed(info) then return 0 end
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return tonumber(string.match(info[i + 1], '^%d+')) end
  end
  return 0
end

-- Append one entry. `entry`: wallet, seq, kind, reference, at_ms, delta, position, body, and where it advanced a tier
-- counter the meter and the units; of a call with a spend key the key, what it spent, requests and day. Returns its
-- number.
-- A failing script is not rolled back: append before anything else is written, so that where it fails nothing is done.
function journal.append(stream_key, counter_key, entry)
  local n = redis.call('INCR', counter_key)
  local added = add(stream_key, n, entry)
  if failed(added) then
    local last = last_number(stream_key)
    if last >= n then  -- the counter was lost: it goes on behind the stream
      added = add(stream_key, last + 1, entry)
    end
    if failed(added) then
      redis.call('DECR', counter_key)
      error(added.err)
    end
    n = last + 1
    redis.call('SET', counter_key, string.format('%.0f', n))
  end
  return n
end
