-- Reserve an amount for one call, if the wallet can pay for it and its limits allow one more.
--
-- KEYS  1 wallet  2 hold  3 open holds (sorted set: hold key by expiry)  4 settled record of the same id
--       5 counters of the spend key that the call is made with, if it is made with one
-- ARGV  1 amount in nano-dollars  2 now in ms  3 expiry in ms  4 descriptor: the request row so far, for the reaper
--       5 holds that may be open at once, 0 for any number
--       6 requests a minute, 0 for any number  7 how many of them may come at once: the size of the token bucket
--       with a spend key: 8 its id  9 cycles: numbers of day, week and month, "d w m"
--       10 nano-dollars that it may spend, '' for any amount, in the cycle 11: d, w, m or t
--       12 requests that it may make, '' for any number, in the cycle 13  14, 15 as 6 and 7, of the key
--       16 what it has spent if this gateway dies: '' what is then debited, or an amount
--       17 '1': made again for a call that was held before
-- Returns  {'held'}                            reserved (or, on a re-send, still reserved)
--          {'insufficient', available, held}   the pots and the limit cannot cover it, holds or no holds
--          {'reserved', available, held}       they could, but other calls' holds stand in the way
--          {'busy', calls}                     as many holds are open as may be
--          {'throttled', ms}                   the bucket is empty; there is a token in so many ms. None was taken
--          {'key_spent', left, held}           the spend key's limit of spending, less what its open holds reserve
--          {'key_requests'}                    its limit of requests, those in flight among them
--          {'key_throttled', ms}               its bucket is empty
--          {'key_unopened'}                    its counters have to be opened first (open_key.lua)
--          {'disabled', status}                the wallet is not 'ok'
--          {'ended'}                           this hold has already been settled, released or expired
--          {'unknown'}                         Redis does not hold the wallet
-- include: wallet, spend

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

local spend, key
if KEYS[5] then
  spend = spending()
  key = spend.read(KEYS[5], ARGV[9])
  if not key.open then
    if ARGV[17] == '' then return { 'key_unopened' } end
  else
    local left = spend.left(key, ARGV[10], ARGV[11])
    if left and amount > left then return { 'key_spent', wallet.exact(left), wallet.exact(key.held) } end
    if ARGV[12] ~= '' and key[ARGV[13]].requests + key.calls >= tonumber(ARGV[12]) then return { 'key_requests' } end
  end
end

-- The bucket, as the time at which it is full again: each token taken moves that time by what a token takes to come.
-- Returns how many ms there is no token, else 0 and the time to write.
local function token_of(name, per_minute, burst)
  local now, token = tonumber(ARGV[2]) * 1000, math.ceil(60000000 / tonumber(per_minute))
  local size = tonumber(burst) * token
  local full = math.max(now, tonumber(redis.call('HGET', name, 'bucket') or '0'))
  -- Never more than an empty bucket: what a clock that runs ahead has written does not lock the wallet until then.
  if full > now + size then
    full = now + size
    redis.call('HSET', name, 'bucket', wallet.exact(full))
  end
  local wait = full + token - now - size
  if wait > 0 then return math.ceil(wait / 1000) end
  return 0, wallet.exact(full + token)
end

local wallet_full, key_full, wait
if ARGV[6] ~= '0' then
  wait, wallet_full = token_of(KEYS[1], ARGV[6], ARGV[7])
  if wait > 0 then return { 'throttled', wait } end
end
if key and ARGV[14] ~= '0' then
  wait, key_full = token_of(KEYS[5], ARGV[14], ARGV[15])
  if wait > 0 then return { 'key_throttled', wait } end
end
if wallet_full then redis.call('HSET', KEYS[1], 'bucket', wallet_full) end

redis.call('HSET', KEYS[1], 'held', held, 'calls', w.calls + 1)
redis.call('HSET', KEYS[2], 'w', KEYS[1], 'a', ARGV[1], 'd', ARGV[4])
redis.call('ZADD', KEYS[3], ARGV[3], KEYS[2])
if key then
  redis.call('HSET', KEYS[2], 'k', ARGV[8], 'kp', ARGV[16], 'kd', ARGV[9], 'kc', key.open or '')
  if key.open then
    spend.reserve(key, amount)
    spend.write(KEYS[5], key, 'used', ARGV[2])
    if key_full then redis.call('HSET', KEYS[5], 'bucket', key_full) end
  end
end
return { 'held' }
