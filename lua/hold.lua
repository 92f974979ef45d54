-- Reserve an amount for one call, if the wallet can pay for it and its limits allow one more.
--
-- KEYS  1 wallet  2 hold  3 open holds (sorted set: hold key by expiry)  4 settled record of the same id
-- ARGV  1 amount in nano-dollars  2 now in ms  3 expiry in ms  4 descriptor: the request row so far, for the reaper
--       5 holds that may be open at once, 0 for any number
--       6 requests a minute, 0 for any number  7 how many of them may come at once: the size of the token bucket
-- Returns  {'held'}                            reserved (or, on a re-send, still reserved)
--          {'insufficient', available, held}   the pots and the limit cannot cover it, holds or no holds
--          {'reserved', available, held}       they could, but other calls' holds stand in the way
--          {'busy', calls}                     as many holds are open as may be
--          {'throttled', ms}                   the bucket is empty; there is a token in so many ms. None was taken
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
local held = wallet.exact(w.held + amount)
if ARGV[5] ~= '0' and w.calls >= tonumber(ARGV[5]) then return { 'busy', w.calls } end

-- The bucket, as the time at which it is full again: each token taken moves that time by what a token takes to come.
if ARGV[6] ~= '0' then
  local now, token = tonumber(ARGV[2]) * 1000, math.ceil(60000000 / tonumber(ARGV[6]))
  local size = tonumber(ARGV[7]) * token
  local full = math.max(now, tonumber(redis.call('HGET', KEYS[1], 'bucket') or '0'))
  -- Never more than an empty bucket: what a clock that runs ahead has written does not lock the wallet until then.
  if full > now + size then
    full = now + size
    redis.call('HSET', KEYS[1], 'bucket', wallet.exact(full))
  end
  local wait = full + token - now - size
  if wait > 0 then return { 'throttled', math.ceil(wait / 1000) } end
  redis.call('HSET', KEYS[1], 'bucket', wallet.exact(full + token))
end

redis.call('HSET', KEYS[1], 'held', held, 'calls', w.calls + 1)
redis.call('HSET', KEYS[2], 'w', KEYS[1], 'a', ARGV[1], 'd', ARGV[4])
redis.call('ZADD', KEYS[3], ARGV[3], KEYS[2])
return { 'held' }
