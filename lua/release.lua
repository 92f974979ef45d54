-- Give a hold back whose call never reached the provider. Moves no money and journals nothing.
--
-- KEYS  1 wallet  2 hold  3 open holds  4 settled record  5 counters of the call's spend key, if it has one
-- ARGV  1 record's time to live in s
-- Returns  {'released', amount}   given back
--          {'gone'}               there is no such hold; a late hold under this id will be refused
-- include: wallet, spend

local held = redis.call('HGET', KEYS[2], 'a')
if redis.call('EXISTS', KEYS[4]) == 0 then
  wallet.record(KEYS[4], 'released', 0, 0, 0, 0, ARGV[1])
end
if not held then return { 'gone' } end
local w = wallet.read(KEYS[1])
if w then
  wallet.give_back(w, tonumber(held))
  redis.call('HSET', KEYS[1], 'held', wallet.exact(w.held), 'calls', w.calls)
end
if KEYS[5] then
  local spend = spending()
  local key = spend.read(KEYS[5], '0 0 0')
  if key.open then
    spend.give_back(key, KEYS[2], tonumber(held))
    spend.write(KEYS[5], key)
  end
end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], KEYS[2])
return { 'released', held }
