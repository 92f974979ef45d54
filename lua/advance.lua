-- Raise a shard's journal counter, so that numbers which PostgreSQL has seen are not given out again.
--
-- KEYS  1 journal counter
-- ARGV  1 number that it must have reached
-- Returns  {'advanced', number before}   raised
--          {'ahead', number}             it was there already

local n = tonumber(redis.call('GET', KEYS[1]) or '0')
if n >= tonumber(ARGV[1]) then return { 'ahead', n } end
redis.call('SET', KEYS[1], ARGV[1])
return { 'advanced', n }
