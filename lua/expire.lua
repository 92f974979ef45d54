-- End a hold whose gateway is gone: past its expiry, debit the progress written on it and give back the rest.
--
-- KEYS  1 wallet  2 hold  3 open holds  4 settled record  5 journal  6 journal counter  7 tier counters
-- ARGV  1 wallet id  2 reference (request id)  3 now in ms  4 record's time to live in s
--       5 when to look again, in ms, at a hold whose wallet Redis does not have
-- Returns  {'expired', amount, journal number}   ended; amount was debited
--          {'alive', expiry}                     renewed in the meantime
--          {'unknown'}                           Redis does not hold the wallet: the hold waits for it
--          {'gone'}                              ended in the meantime
-- include: wallet, journal, exact, tiers

local expiry = redis.call('ZSCORE', KEYS[3], KEYS[2])
local hold = redis.call('HMGET', KEYS[2], 'a', 'p', 'd', 'g', 'm', 'u')
if not expiry or not hold[1] then
  redis.call('ZREM', KEYS[3], KEYS[2])
  return { 'gone' }
end
if tonumber(expiry) > tonumber(ARGV[3]) then return { 'alive', expiry } end
local w = wallet.read(KEYS[1])
if not w then
  redis.call('ZADD', KEYS[3], ARGV[5], KEYS[2])
  return { 'unknown' }
end

local meter, units, position, fee = hold[5] or '', tonumber(hold[6] or '0'), 0, 0
if meter ~= '' then
  position = tonumber(redis.call('HGET', KEYS[7], meter) or '0')
  wallet.exact(position + units)
  if hold[4] and hold[4] ~= '' then fee = tiers.fee(cjson.decode(hold[4]), position) end
end
local amount = wallet.exact(tonumber(hold[2] or '0') + fee)

local delta = wallet.debit(w, amount)
wallet.give_back(w, tonumber(hold[1]))
w.seq = w.seq + 1
wallet.check(w)  -- all that can fail comes before the first write, and that is the journal's
local n = journal.append(KEYS[5], KEYS[6], {
  wallet = ARGV[1], seq = w.seq, kind = 'expired', reference = ARGV[2], at_ms = ARGV[3], delta = delta,
  position = position, meter = meter, units = units, body = hold[3],
})
wallet.write(KEYS[1], w)
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], KEYS[2])
if meter ~= '' and units > 0 then redis.call('HINCRBY', KEYS[7], meter, wallet.exact(units)) end
wallet.record(KEYS[4], 'expired', amount, fee, position, n, ARGV[4], units)
return { 'expired', amount, wallet.exact(n) }
