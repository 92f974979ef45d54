-- Renew a live call's hold: a later expiry, perhaps a larger amount, and how far the call has come.
--
-- KEYS  1 wallet  2 hold  3 open holds
-- ARGV  1 amount wanted in nano-dollars  2 new expiry in ms
--       3 progress: nano-dollars to debit if the gateway dies now, '' to leave as it is  4 progress: the row so far
-- Returns  {'extended', amount}              renewed; the amount never shrinks
--          {'refused', available, amount}    renewed at its old amount: the wallet cannot cover more
--          {'gone'}                          the hold has ended
-- include: wallet

local before = redis.call('HGET', KEYS[2], 'a')
local w = wallet.read(KEYS[1])
if not before or not w then return { 'gone' } end

redis.call('ZADD', KEYS[3], ARGV[2], KEYS[2])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], 'p', ARGV[3], 'd', ARGV[4]) end

local more = tonumber(ARGV[1]) - tonumber(before)
if more <= 0 then return { 'extended', before } end
local available = wallet.available(w)
if available and more > available then return { 'refused', wallet.exact(available), before } end
redis.call('HSET', KEYS[1], 'held', wallet.exact(w.held + more))
redis.call('HSET', KEYS[2], 'a', ARGV[1])
return { 'extended', ARGV[1] }
