-- Put money into a pot, once for each credit id.
--
-- KEYS  1 wallet  2 credit record  3 journal  4 journal counter
-- ARGV  1 wallet id  2 credit id  3 now in ms  4 pot: cycle | bundle | prepaid | overage  5 amount in nano-dollars, > 0
--       6 body for the journal  7 record's time to live in s
--       'overage' pays unpaid overage first; what is left goes to prepaid.
-- Returns  {'credited', journal number}    done
--          {'duplicate', journal number}   this credit id was applied before; nothing moved
--          {'unknown'}                     Redis does not hold the wallet
-- include: wallet, journal

local before = redis.call('GET', KEYS[2])
if before then return { 'duplicate', before } end
local w = wallet.read(KEYS[1])
if not w then return { 'unknown' } end

local amount, delta = tonumber(ARGV[5]), { cycle = 0, bundle = 0, prepaid = 0, overage = 0 }
assert(amount > 0, 'a credit is above zero')
if ARGV[4] == 'overage' then
  delta.overage = 0 - math.min(amount, w.overage)
  delta.prepaid = amount + delta.overage
else
  assert(delta[ARGV[4]], 'no such pot')
  delta[ARGV[4]] = amount
end
for pot, change in pairs(delta) do w[pot] = w[pot] + change end
w.seq = w.seq + 1
wallet.check(w)  -- all that can fail comes before the first write, and that is the journal's

local n = journal.append(KEYS[3], KEYS[4], {
  wallet = ARGV[1], seq = w.seq, kind = 'credit', reference = ARGV[2], at_ms = ARGV[3], delta = delta,
  position = 0, body = ARGV[6],
})
wallet.write(KEYS[1], w)
redis.call('SET', KEYS[2], n, 'EX', ARGV[7])
return { 'credited', n }
