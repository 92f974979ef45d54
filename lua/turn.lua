-- Turn a wallet's cycle, once for each turn id: what does not roll over expires, the new cycle's credit is added, the
-- tier counters begin anew, and the overage limit becomes the plan's. Open holds stay as they are.
--
-- KEYS  1 wallet  2 credit record of the turn id  3 journal  4 journal counter  5 tier counters
-- ARGV  1 wallet id  2 turn id  3 now in ms  4 the turn as JSON (includes/turn.lua), the body for the journal
--       5 overage limit in nano-dollars, -1 for none  6 record's time to live in s
-- Returns  {'turned', journal number}      done
--          {'duplicate', journal number}   this turn was applied before; nothing changed
--          {'unknown'}                     Redis does not hold the wallet
-- include: wallet, journal, turn

local before = redis.call('GET', KEYS[2])
if before then return { 'duplicate', before } end
local w = wallet.read(KEYS[1])
if not w then return { 'unknown' } end

local turn = turning.read(ARGV[4])
local limit = wallet.exact(tonumber(ARGV[5]))
local delta = turning.apply(w, turn)
w.seq = w.seq + 1
wallet.check(w)  -- all that can fail comes before the first write, and that is the journal's

local n = journal.append(KEYS[3], KEYS[4], {
  wallet = ARGV[1], seq = w.seq, kind = 'turn', reference = ARGV[2], at_ms = ARGV[3], delta = delta,
  position = 0, body = ARGV[4],
})
wallet.write(KEYS[1], w)
redis.call('HSET', KEYS[1], 'limit', limit)
if turn.reset_meters then redis.call('DEL', KEYS[5]) end
redis.call('SET', KEYS[2], n, 'EX', ARGV[6])
return { 'turned', n }
