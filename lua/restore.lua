-- Put a wallet that Redis lost, or lost the end of, into use again: PostgreSQL's sums, then the journal entries that
-- PostgreSQL does not have yet. Everything in one step: whoever is killed leaves the wallet out of use, or right.
--
-- KEYS  1 wallet  2 tier counters  3 wallets to restore  4 journal  5 journal counter, then the wallet's open holds
-- ARGV  1 wallet id  2 status  3 overage limit  4 cycle  5 bundle  6 prepaid  7 overage  8 sequence number
--       9 highest journal number that PostgreSQL has
--       10 number of meters, then for each its id and the units used in the cycle
--       then the numbers of this wallet's journal entries that PostgreSQL does not have, in order
-- Returns  {'restored', sequence number, held, entries journalled again}   in use
--          {'present'}                                                     it was in use: nothing changed
--          {'stale'}      one of the entries is not there any more, so the sums are older than what PostgreSQL has
--                         by now (whoever read them lost the lock they were read under): nothing changed
-- include: wallet, journal, turn

if wallet.read(KEYS[1]) then return { 'present' } end

local w = {
  cycle = tonumber(ARGV[4]), bundle = tonumber(ARGV[5]), prepaid = tonumber(ARGV[6]), overage = tonumber(ARGV[7]),
  seq = tonumber(ARGV[8]), held = 0, calls = 0,
}
local recorded, meters = tonumber(ARGV[9]), tonumber(ARGV[10])

local function entry_of(number)
  local found = redis.call('XRANGE', KEYS[4], number .. '-0', number .. '-0')[1]
  if not found then return nil end
  local f, e = found[2], {}
  for i = 1, #f, 2 do e[f[i]] = f[i + 1] end
  return e
end

-- The effect of an entry that was written upon another state of the wallet: what it took or gave, spread anew.
local function apply(e)
  local cycle, bundle, prepaid, overage = tonumber(e.c), tonumber(e.b), tonumber(e.p), tonumber(e.o)
  if e.turn then return turning.apply(w, e.turn) end
  if e.k ~= 'credit' then return wallet.debit(w, overage - cycle - bundle - prepaid) end
  local paid = math.min(0 - overage, w.overage)
  local delta = { cycle = cycle, bundle = bundle, prepaid = prepaid - overage - paid, overage = 0 - paid }
  for pot, change in pairs(delta) do w[pot] = w[pot] + change end
  return delta
end

-- All that can fail comes before the first write.
local entries = {}
for i = 11 + 2 * meters, #ARGV do
  local e = entry_of(ARGV[i])
  if not e then return { 'stale' } end
  e.number = tonumber(ARGV[i])
  if e.k == 'turn' then e.turn = turning.read(e.d) end
  entries[#entries + 1] = e
end
for i = 6, #KEYS do
  local hold = redis.call('HMGET', KEYS[i], 'w', 'a')
  if hold[1] == KEYS[1] then
    w.held = w.held + tonumber(hold[2])
    w.calls = w.calls + 1
  end
end

redis.call('DEL', KEYS[2])
for i = 11, 10 + 2 * meters, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end

local again = 0
for _, e in ipairs(entries) do
  w.seq = w.seq + 1
  if e.number > recorded and tonumber(e.s) == w.seq then
    w.cycle, w.bundle = w.cycle + tonumber(e.c), w.bundle + tonumber(e.b)
    w.prepaid, w.overage = w.prepaid + tonumber(e.p), w.overage + tonumber(e.o)
  else
    -- Its number or its place in the wallet is taken in PostgreSQL by another entry.
    local delta = apply(e)
    journal.append(KEYS[4], KEYS[5], {
      wallet = ARGV[1], seq = w.seq, kind = e.k, reference = e.r, at_ms = e.t, delta = delta, position = e.u,
      meter = e.m, units = e.q, body = e.d, key = e.y, spent = e.z, requests = e.x, day = e.v,
    })
    redis.call('XDEL', KEYS[4], string.format('%.0f-0', e.number))
    again = again + 1
  end
  if e.turn and e.turn.reset_meters then redis.call('DEL', KEYS[2]) end
  if (e.m or '') ~= '' then redis.call('HINCRBY', KEYS[2], e.m, e.q) end
end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'limit', ARGV[3])
wallet.write(KEYS[1], w)
redis.call('SREM', KEYS[3], ARGV[1])
return { 'restored', wallet.exact(w.seq), wallet.exact(w.held), again }
