-- Make a wallet known to Redis, or set its status and overage limit. Moves no money.
--
-- KEYS  1 wallet
-- ARGV  1 status: ok | disabled | deleted
--       2 overage limit in nano-dollars, -1 for none
--       3 '1': create the wallet (empty) if Redis does not hold it
-- Returns  {'opened'}      created
--          {'configured'}  existed; status and limit set
--          {'unknown'}     not held and not to be created, or being restored

local exists = redis.call('HEXISTS', KEYS[1], 'status') == 1
if not exists and (ARGV[3] ~= '1' or redis.call('EXISTS', KEYS[1]) == 1) then return { 'unknown' } end
redis.call('HSET', KEYS[1], 'status', ARGV[1], 'limit', ARGV[2])
if exists then return { 'configured' } end
redis.call('HSET', KEYS[1], 'cycle', '0', 'bundle', '0', 'prepaid', '0', 'overage', '0', 'held', '0', 'seq', '0')
return { 'opened' }
