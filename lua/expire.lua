-- End a hold whose gateway is gone: past its expiry, debit the progress written on it and give back the rest.
--
-- KEYS  1 wallet  2 hold  3 open holds  4 settled record  5 journal  6 journal counter
-- ARGV  1 wallet id  2 reference (request id)  3 now in ms  4 record's time to live in s
-- Returns  {'expired', amount, journal number}   ended; amount was debited
--          {'alive', expiry}                     renewed in the meantime
--          {'gone'}                              ended in the meantime
-- include: wallet, journal

local expiry = redis.call('ZSCORE', KEYS[3], KEYS[2])
local hold = redis.call('HMGET', KEYS[2], 'a', 'p', 'd')
if not expiry or not hold[1] then
  redis.call('ZREM', KEYS[3], KEYS[2])
  return { 'gone' }
end
if tonumber(expiry) > tonumber(ARGV[3]) then return { 'alive', expiry } end

local w = wallet.read(KEYS[1])
local amount = tonumber(hold[2] or '0')
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], KEYS[2])
if not w then return { 'gone' } end

local delta = wallet.debit(w, amount)
w.held = w.held - tonumber(hold[1])
w.seq = w.seq + 1
wallet.write(KEYS[1], w)
local n = journal.append(KEYS[5], KEYS[6], {
  wallet = ARGV[1], seq = w.seq, kind = 'expired', reference = ARGV[2], at_ms = ARGV[3], delta = delta,
  position = 0, body = hold[3],
})
wallet.record(KEYS[4], 'expired', wallet.exact(amount), 0, 0, n, ARGV[4])
return { 'expired', wallet.exact(amount), wallet.exact(n) }
