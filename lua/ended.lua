-- Tell Redis again how calls of a wallet ended that it has forgotten, before the wallet is restored: a settle sent
-- again is then a duplicate, and a hold that came back with an older state of Redis ends.
--
-- KEYS  1 wallet  2 open holds, then for each call its hold and its settled record
-- ARGV  1 journal number up to which PostgreSQL has them
--       then for each call: 'settled' | 'expired', amount in nano-dollars, graduated fee in it (of an expiry), position
--       of its meter's counter before it, units by which that advanced, record's time to live in s (0: none is written)
-- Returns  {'told', number}   so many holds had come back
--          {'present'}        the wallet is in use: nothing changed
-- include: wallet

if wallet.read(KEYS[1]) then return { 'present' } end
local ended = 0
for i = 3, #KEYS, 2 do
  local at = (i - 3) / 2 * 6 + 1
  local how, amount, fee = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local position, units, ttl_s = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  ended = ended + redis.call('DEL', KEYS[i])
  redis.call('ZREM', KEYS[2], KEYS[i])
  -- A call that expired and was settled afterwards has both endings; the settlement is the last word.
  if ttl_s > 0 and (how == 'settled' or redis.call('EXISTS', KEYS[i + 1]) == 0) then
    local of_expiry = how == 'expired' and units or nil
    wallet.record(KEYS[i + 1], how, wallet.exact(amount), fee, position, tonumber(ARGV[1]), ttl_s, of_expiry)
  end
end
return { 'told', ended }
