-- Renew a live call's hold: a later expiry, perhaps a larger amount, and how far the call has come.
--
-- KEYS  1 wallet  2 hold  3 open holds  4 counters of the call's spend key, if it has one
-- ARGV  1 amount wanted in nano-dollars  2 new expiry in ms
--       3 progress: the row so far, '' to leave the progress as it is
--       4-7 progress: what to debit if the gateway dies now, as settle takes it: the amount that depends on no position,
--       the graduated price or '', the meter id or '', its units
--       with a spend key: 8, 9 its limit of spending and that one's cycle, 10 cycles, as hold takes them
--       11 progress: what the key has spent if the gateway dies now: '' what is then debited, or an amount
-- Returns  {'extended', amount}                 renewed; the amount never shrinks
--          {'refused', why, available, amount}  renewed at its old amount: the wallet cannot cover more. why:
--                                               'insufficient' | 'reserved', if other calls' holds stand in the way,
--                                               'key': it could, but the limit of the spend key is reached
--          {'unknown'}                          renewed at its old amount: Redis does not hold the wallet
--          {'gone'}                             the hold has ended
-- include: wallet, spend

local hold = redis.call('HMGET', KEYS[2], 'a', 'kc')
local before = hold[1]
if not before then return { 'gone' } end

redis.call('ZADD', KEYS[3], ARGV[2], KEYS[2])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[2], 'd', ARGV[3], 'p', ARGV[4], 'g', ARGV[5], 'm', ARGV[6], 'u', ARGV[7])
  if KEYS[4] then redis.call('HSET', KEYS[2], 'kp', ARGV[11], 'kd', ARGV[10]) end
end

local more = tonumber(ARGV[1]) - tonumber(before)
local open = KEYS[4] and redis.call('HGET', KEYS[4], 'open')
local missed = open and open ~= hold[2]  -- made again while the counters were not open, and not found by who opened them
local spend, key
if missed or (open and more > 0) then
  spend = spending()
  key = spend.read(KEYS[4], ARGV[10])
end
if missed then
  spend.reserve(key, tonumber(before))
  spend.write(KEYS[4], key)
  redis.call('HSET', KEYS[2], 'kc', open)
end
if more <= 0 then return { 'extended', before } end
local w = wallet.read(KEYS[1])
if not w then return { 'unknown' } end
local available = wallet.available(w)
if available and more > available then
  local why = tonumber(ARGV[1]) > available + w.held and 'insufficient' or 'reserved'
  return { 'refused', why, wallet.exact(available), before }
end
local held = wallet.exact(w.held + more)
if key then
  local left = spend.left(key, ARGV[8], ARGV[9])
  if left and more > left then return { 'refused', 'key', wallet.exact(left), before } end
  key.held = key.held + more
  spend.write(KEYS[4], key)
end
redis.call('HSET', KEYS[1], 'held', held)
redis.call('HSET', KEYS[2], 'a', ARGV[1])
return { 'extended', ARGV[1] }
