-- Reserve an amount for one call, if the wallet can pay for it.
--
-- KEYS  1 wallet  2 hold  3 open holds (sorted set: hold key by expiry)  4 settled record of the same id
-- ARGV  1 amount in nano-dollars  2 now in ms  3 expiry in ms  4 descriptor: the request row so far, for the reaper
-- Returns  {'held'}                            reserved (or, on a re-send, still reserved)
--          {'insufficient', available, held}   the pots and the limit cannot cover it, holds or no holds
--          {'reserved', available, held}       they could, but other calls' holds stand in the way
--          {'disabled', status}                the wallet is not 'ok'
--          {'ended'}                           this hold has already been settled, released or expired
--          {'unknown'}                         Redis does not hold the wallet
-- include: wallet

local w = wallet.read(KEYS[1])
if not w then return { 'unknown' } end
if w.status ~= 'ok' then return { 'disabled', w.status } end
if redis.call('EXISTS', KEYS[2], KEYS[4]) > 0 then  -- one call for the usual case: neither
  return { redis.call('EXISTS', KEYS[4]) == 1 and 'ended' or 'held' }
end

local amount = tonumber(ARGV[1])
local available = wallet.available(w)
if available and amount > available then
  local why = amount > available + w.held and 'insufficient' or 'reserved'
  return { why, wallet.exact(available), wallet.exact(w.held) }
end

redis.call('HSET', KEYS[1], 'held', wallet.exact(w.held + amount))
redis.call('HSET', KEYS[2], 'w', KEYS[1], 'a', ARGV[1], 'd', ARGV[4])
redis.call('ZADD', KEYS[3], ARGV[3], KEYS[2])
return { 'held' }
