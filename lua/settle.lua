-- End a call: debit what it cost, give back the rest of its hold, journal it. Never refuses for lack of money:
-- what the pots cannot cover is recorded as overage. Exactly once for each id, whatever is re-sent.
--
-- KEYS  1 wallet  2 hold  3 open holds  4 settled record  5 journal  6 journal counter  7 tier counters
--       8 counters of the call's spend key, if it has one
-- ARGV  1 wallet id  2 reference (request id)  3 now in ms
--       4 amount in nano-dollars; with a graduated price the part that depends on no position
--       5 graduated price as JSON (includes/tiers.lua), or ''
--       6 meter id whose counter advances, or ''  7 units it advances by
--       8 body for the journal (the request row)  9 record's time to live in s
--       10 'call': the hold must exist or have expired | 'report': there is no hold
--          'resent': a call whose hold Redis has lost; the caller knows that it was held and not settled long ago
--       with a spend key: 11 its id  12 cycles, as hold takes them
--       13 what the key has spent: '' the amount that is debited, or an amount
-- Returns  {'settled', amount, fee of the graduated price, position, journal number}
--          {'duplicate', amount, fee, position, journal number}  settled before: the same figures, nothing moved
--          {'gone'}      a call whose hold was never made, or was released, or ended too long ago, or was lost
--          {'unknown'}   Redis does not hold the wallet
-- include: wallet, journal, exact, tiers, spend

local record = wallet.recorded(KEYS[4])
if record[1] == 'settled' then return { 'duplicate', record[2], record[3], record[4], record[5] } end

local w = wallet.read(KEYS[1])
if not w then return { 'unknown' } end
local held = redis.call('HGET', KEYS[2], 'a')
local already, already_fee, already_units = 0, 0, 0
if record[1] == 'expired' then
  already, already_fee, already_units = tonumber(record[2]), tonumber(record[3]), tonumber(record[6] or '0')
elseif not held and (ARGV[10] == 'call' or record[1] == 'released') then
  return { 'gone' }
end

local units, position, fee = math.max(0, tonumber(ARGV[7]) - already_units), 0, 0
if ARGV[6] ~= '' then
  position = tonumber(redis.call('HGET', KEYS[7], ARGV[6]) or '0')
  wallet.exact(position + units)
  if ARGV[5] ~= '' then fee = tiers.whole_fee(cjson.decode(ARGV[5]), position, already_units, already_fee) end
  position = math.max(0, position + units - tonumber(ARGV[7]))
end
local amount = tonumber(ARGV[4]) + fee
local figures = { wallet.exact(amount), wallet.exact(fee), wallet.exact(position) }

-- A hold that expired under a live call was debited for its progress then; only the difference is due now, in units as
-- in money.
local delta = wallet.debit(w, math.max(0, amount - already))
if held then wallet.give_back(w, tonumber(held)) end
w.seq = w.seq + 1
local spend, key, spent
local requests = record[1] == 'expired' and 0 or 1
if KEYS[8] then
  spend = spending()
  key = spend.read(KEYS[8], ARGV[12])
  -- What its expiry had counted. A record that was told again (ended.lua) does not say it of an amount of its own.
  local before = requests == 0 and tonumber(record[7] or ARGV[13] == '' and record[2] or '0') or 0
  spent = math.max(0, (ARGV[13] == '' and amount or tonumber(ARGV[13])) - before)
  spend.add(key, spent, requests)
  if held then spend.give_back(key, KEYS[2], tonumber(held)) end
end
-- A failing script is not rolled back: all that can fail comes before the first write, and that is the journal's.
wallet.check(w)
local n = journal.append(KEYS[5], KEYS[6], {
  wallet = ARGV[1], seq = w.seq, reference = ARGV[2],
  kind = record[1] == 'expired' and 'late' or ARGV[10] == 'report' and 'report' or 'call',
  at_ms = ARGV[3], delta = delta, position = position, meter = ARGV[6], units = units, body = ARGV[8],
  key = ARGV[11], spent = spent, requests = requests, day = key and string.match(ARGV[12], '%d+'),
})
wallet.write(KEYS[1], w)
if ARGV[6] ~= '' and units > 0 then redis.call('HINCRBY', KEYS[7], ARGV[6], wallet.exact(units)) end
if held then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[3], KEYS[2])
end
if key then spend.keep(KEYS[8], key, n, spent, requests, ARGV[12]) end
figures[4] = wallet.exact(n)
wallet.record(KEYS[4], 'settled', figures[1], figures[2], figures[3], figures[4], ARGV[9])
return { 'settled', figures[1], figures[2], figures[3], figures[4] }
