-- Claim a caller's own id for one payload, before anything is done under it.
--
-- KEYS  1 claim
-- ARGV  1 fingerprint of the payload and of who pays  2 holder: the request id this claim is for
--       3 time to live in s
-- Returns  {'claimed'}                  nobody had it
--          {'same', holder, state}      claimed before with the same fingerprint; state '' or 'done'
--          {'conflict', holder, state}  claimed before with another fingerprint

local claim = redis.call('HMGET', KEYS[1], 'f', 'h', 's')
if claim[1] then
  return { claim[1] == ARGV[1] and 'same' or 'conflict', claim[2], claim[3] or '' }
end
redis.call('HSET', KEYS[1], 'f', ARGV[1], 'h', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return { 'claimed' }
