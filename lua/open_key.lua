-- Make the counters of a spend key from the record: PostgreSQL's sums, what was journalled behind them, the open holds.
--
-- KEYS  1 counters  2 wallet, then the wallet's open holds
-- ARGV  1 spend key id  2 journal number up to which the sums are  3 cycles, as hold takes them
--       4-11 nano-dollars spent and requests ended: in that day, week, month, and ever  12 when it was last used, ms
--       13 a name for these counters that none had before
-- Returns  {'opened'}    they can be used
--          {'present'}   they could be: nothing changed
--          {'unknown'}   the wallet is not in use: what the sums lack of it may still be journalled again
-- include: wallet, spend

local spend = spending()
if redis.call('HEXISTS', KEYS[2], 'status') == 0 then return { 'unknown' } end
if redis.call('HEXISTS', KEYS[1], 'open') == 1 then return { 'present' } end

local later = redis.call('HGETALL', KEYS[1])
redis.call('DEL', KEYS[1])
local key = spend.read(KEYS[1], ARGV[3])
key.open = ARGV[13]
for i, span in ipairs({ 'd', 'w', 'm', 't' }) do
  key[span].spent, key[span].requests = tonumber(ARGV[2 + 2 * i]), tonumber(ARGV[3 + 2 * i])
  key[span].changed = true
end
for i = 3, #KEYS do
  local hold = redis.call('HMGET', KEYS[i], 'w', 'a', 'k')
  if hold[1] == KEYS[2] and hold[3] == ARGV[1] then
    spend.reserve(key, tonumber(hold[2]))
    redis.call('HSET', KEYS[i], 'kc', key.open)
  end
end
spend.write(KEYS[1], key, 'open', key.open, 'used', ARGV[12])
for i = 1, #later, 2 do
  local number = string.match(later[i], '^p:(%d+)$')
  if number and tonumber(number) > tonumber(ARGV[2]) then
    local spent, requests, cycles = string.match(later[i + 1], '^(%d+) (%d+) (.+)$')
    key = spend.read(KEYS[1], cycles)
    spend.add(key, tonumber(spent), tonumber(requests))
    spend.write(KEYS[1], key)
  end
end
return { 'opened' }
