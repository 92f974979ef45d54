-- End a claim: given up (the id may be used again), or done (it may not, for as long as the claim lives).
--
-- KEYS  1 claim
-- ARGV  1 holder  2 'done' | 'free'  3 how long a done claim lives, in s
-- Returns  {'done'} | {'free'}   as asked
--          {'gone'}              the claim is not this holder's

if redis.call('HGET', KEYS[1], 'h') ~= ARGV[1] then return { 'gone' } end
if ARGV[2] == 'free' then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 's', 'done')
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return { ARGV[2] }
