-- End a call: debit what it cost, give back the rest of its hold, journal it. Never refuses for lack of money:
-- what the pots cannot cover is recorded as overage. Exactly once for each id, whatever is re-sent.
--
-- KEYS  1 wallet  2 hold  3 open holds  4 settled record  5 journal  6 journal counter  7 tier counters
-- ARGV  1 wallet id  2 reference (request id)  3 now in ms
--       4 amount in nano-dollars; with a graduated price the part that depends on no position
--       5 graduated price as JSON (includes/tiers.lua), or ''
--       6 meter id whose counter advances, or ''  7 units it advances by
--       8 body for the journal (the request row)  9 record's time to live in s
--       10 'call': the hold must exist or have expired | 'report': there is no hold
-- Returns  {'settled', amount, fee of the graduated price, position, journal number}
--          {'duplicate', amount, fee, position, journal number}  settled before: the same figures, nothing moved
--          {'gone'}      a call whose hold was never made, or was released, or ended too long ago
--          {'unknown'}   Redis does not hold the wallet
-- include: wallet, journal, exact, tiers

local record = wallet.recorded(KEYS[4])
if record[1] == 'settled' then return { 'duplicate', record[2], record[3], record[4], record[5] } end

local w = wallet.read(KEYS[1])
if not w then return { 'unknown' } end
local held = redis.call('HGET', KEYS[2], 'a')
local already = 0
if record[1] == 'expired' then
  already = tonumber(record[2])
elseif ARGV[10] == 'call' and not held then
  return { 'gone' }
end

local position, fee = 0, 0
if ARGV[6] ~= '' then
  position = tonumber(redis.call('HGET', KEYS[7], ARGV[6]) or '0')
  wallet.exact(position + tonumber(ARGV[7]))
  if ARGV[5] ~= '' then fee = tiers.fee(cjson.decode(ARGV[5]), position) end
end
local amount = tonumber(ARGV[4]) + fee
local figures = { wallet.exact(amount), wallet.exact(fee), wallet.exact(position) }

-- A hold that expired under a live call was debited for its progress then; only the difference is due now.
local delta = wallet.debit(w, math.max(0, amount - already))
w.held = w.held - tonumber(held or '0')
w.seq = w.seq + 1
-- A failing script is not rolled back: wallet.write refuses what is beyond 2^53 before it writes, and nothing is
-- written before it.
wallet.write(KEYS[1], w)
if ARGV[6] ~= '' and ARGV[7] ~= '0' then redis.call('HINCRBY', KEYS[7], ARGV[6], ARGV[7]) end
if held then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[3], KEYS[2])
end

local n = journal.append(KEYS[5], KEYS[6], {
  wallet = ARGV[1], seq = w.seq, kind = record[1] == 'expired' and 'late' or ARGV[10], reference = ARGV[2],
  at_ms = ARGV[3], delta = delta, position = position, body = ARGV[8],
})
figures[4] = wallet.exact(n)
wallet.record(KEYS[4], 'settled', figures[1], figures[2], figures[3], figures[4], ARGV[9])
return { 'settled', figures[1], figures[2], figures[3], figures[4] }
