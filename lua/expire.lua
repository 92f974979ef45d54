-- End a hold whose gateway is gone: past its expiry, debit the progress written on it and give back the rest.
--
-- KEYS  1 wallet  2 hold  3 open holds  4 settled record  5 journal  6 journal counter  7 tier counters
--       8 counters of the spend key that the hold names, if it names one
-- ARGV  1 wallet id  2 reference (request id)  3 now in ms  4 record's time to live in s
--       5 when to look again, in ms, at a hold whose wallet Redis does not have
-- Returns  {'expired', amount, journal number}   ended; amount was debited
--          {'alive', expiry}                     renewed in the meantime
--          {'unknown'}                           Redis does not hold the wallet: the hold waits for it
--          {'gone'}                              ended in the meantime
-- include: wallet, journal, exact, tiers, spend

local expiry = redis.call('ZSCORE', KEYS[3], KEYS[2])
local hold = redis.call('HMGET', KEYS[2], 'a', 'p', 'd', 'g', 'm', 'u', 'k', 'kp', 'kd')
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
local spend, key, spent
if KEYS[8] then
  spend = spending()
  key = spend.read(KEYS[8], hold[9])
  spent = hold[8] == '' and amount or tonumber(hold[8])
  spend.add(key, spent, 1)
  spend.give_back(key, KEYS[2], tonumber(hold[1]))
end
wallet.check(w)  -- all that can fail comes before the first write, and that is the journal's
local n = journal.append(KEYS[5], KEYS[6], {
  wallet = ARGV[1], seq = w.seq, kind = 'expired', reference = ARGV[2], at_ms = ARGV[3], delta = delta,
  position = position, meter = meter, units = units, body = hold[3],
  key = hold[7], spent = spent, requests = 1, day = key and string.match(hold[9], '%d+'),
})
wallet.write(KEYS[1], w)
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], KEYS[2])
if meter ~= '' and units > 0 then redis.call('HINCRBY', KEYS[7], meter, wallet.exact(units)) end
if key then spend.keep(KEYS[8], key, n, spent, 1, hold[9]) end
wallet.record(KEYS[4], 'expired', amount, fee, position, n, ARGV[4], units, spent)
return { 'expired', amount, wallet.exact(n) }
