-- What the turn of a cycle does to a wallet: gateway/ledger/turn.py as it came, parsed from JSON.
-- A turn is {keep_cycle, keep_bundle, credit_nano, reset_meters}.

local turning = {}

function turning.read(body)
  local turn = cjson.decode(body)
  assert(type(turn.credit_nano) == 'number' and turn.credit_nano >= 0, 'a turn grants no less than nothing')
  return turn
end

-- Expire what does not roll over and add the new cycle's credit. Prepaid money and unpaid overage stay. Returns the deltas.
function turning.apply(w, turn)
  local before = w.cycle + w.bundle
  local delta = {
    cycle = turn.credit_nano - (turn.keep_cycle and 0 or w.cycle),
    bundle = turn.keep_bundle and 0 or 0 - w.bundle,
    prepaid = 0,
    overage = 0,
  }
  w.cycle, w.bundle = w.cycle + delta.cycle, w.bundle + delta.bundle
  -- I9: rollover never creates credit, and nothing expires but what was left.
  assert(w.cycle >= turn.credit_nano and w.bundle >= 0, 'a turn takes what is not there')
  assert(w.cycle + w.bundle <= before + turn.credit_nano, 'a turn makes credit')
  return delta
end
