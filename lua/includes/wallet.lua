-- The wallet hash: its fields, and how a debit is spread over the pots.
--
--   status   'ok' | 'disabled' | 'deleted'
--   cycle, bundle, prepaid   nano-dollars in each pot, >= 0
--   overage  nano-dollars spent beyond the pots and not yet paid, >= 0
--   limit    nano-dollars of overage allowed; -1: without limit
--   held     nano-dollars reserved by open holds, >= 0
--   calls    open holds: the calls in flight, >= 0. Absent in a wallet that was last written before it was counted.
--   bucket   microseconds since 1970 at which the token bucket of requests is full again; only where there is one
--   seq      journalled movements of this wallet so far

local EXACT_LIMIT = 9007199254740992

local wallet = {}

local function number(text)
  return tonumber(text or '0')
end

-- The wallet as numbers, or nil where Redis does not hold it.
function wallet.read(key)
  local f = redis.call('HMGET', key, 'status', 'cycle', 'bundle', 'prepaid', 'overage', 'limit', 'held', 'seq', 'calls')
  if not f[1] then return nil end
  return {
    status = f[1], cycle = number(f[2]), bundle = number(f[3]), prepaid = number(f[4]),
    overage = number(f[5]), limit = number(f[6]), held = number(f[7]), seq = number(f[8]),
    calls = number(f[9]),
  }
end

-- Doubles are exact below 2^53; as arguments and replies they are then written in full.
function wallet.exact(n)
  assert(n > -EXACT_LIMIT and n < EXACT_LIMIT, 'amount beyond 2^53')
  return n
end

-- What new holds may still reserve. Not defined (nil) for a wallet without limit.
function wallet.available(w)
  if w.limit < 0 then return nil end
  return w.cycle + w.bundle + w.prepaid + w.limit - w.overage - w.held
end

-- One hold less, of `amount`. Holds made before calls were counted are not among them.
function wallet.give_back(w, amount)
  w.held = w.held - amount
  w.calls = math.max(0, w.calls - 1)
end

-- Take `amount` from the pots in their order; what they cannot cover becomes overage. Returns the deltas.
function wallet.debit(w, amount)
  local left, delta = amount, { cycle = 0, bundle = 0, prepaid = 0, overage = 0 }
  for _, pot in ipairs({ 'cycle', 'bundle', 'prepaid' }) do
    local part = math.min(left, w[pot])
    w[pot] = w[pot] - part
    delta[pot] = 0 - part
    left = left - part
  end
  w.overage = w.overage + left
  delta.overage = left
  return delta
end

-- Refuse what `write` would refuse, before anything is written.
function wallet.check(w)
  for _, field in ipairs({ 'cycle', 'bundle', 'prepaid', 'overage', 'held', 'seq' }) do wallet.exact(w[field]) end
end

-- Write pots, holds and sequence back.
function wallet.write(key, w)
  redis.call('HSET', key, 'cycle', wallet.exact(w.cycle), 'bundle', wallet.exact(w.bundle),
    'prepaid', wallet.exact(w.prepaid), 'overage', wallet.exact(w.overage), 'held', wallet.exact(w.held),
    'seq', wallet.exact(w.seq), 'calls', w.calls)
end

-- How a request ended, kept a while: "how amount fee position n units spent". Written and read in one call each. `units`
-- is said of an expiry only: what its progress advanced the meter's counter by; `spent` of one with a spend key.
function wallet.record(key, how, amount, fee, position, n, ttl_s, units, spent)
  local said = string.format('%s %.0f %.0f %.0f %.0f', how, amount, fee, position, n)
  if units then said = said .. string.format(' %.0f', units) end
  if spent then said = said .. string.format(' %.0f', spent) end
  redis.call('SET', key, said, 'EX', ttl_s)
end

-- {how, amount, fee, position, n, units, spent}, or an empty table.
function wallet.recorded(key)
  local found = {}
  for word in string.gmatch(redis.call('GET', key) or '', '%S+') do found[#found + 1] = word end
  return found
end
