-- Graduated prices: gateway/core/meter.py in Lua. The two are held equal by tests/property/test_tiers.py.
-- Needs: exact.
-- A price is {kind = 'fixed' | 'percentage', units, per, starts = {..}, rates = {..}, cost, passed_on}.

local tiers = {}

-- The sum over tiers of rate * (units between low and high that fall into the tier), as a big number.
local function weigh(price, low, high)
  local sum = exact.from(0)
  for i, start in ipairs(price.starts) do
    local first = math.max(low, start)
    local last = price.starts[i + 1] and math.min(high, price.starts[i + 1]) or high
    if last > first then
      sum = exact.add(sum, exact.multiply(exact.from(price.rates[i]), exact.from(last - first)))
    end
  end
  return sum
end

local function running_total(price, units)
  return exact.divide_half_up(weigh(price, 0, units), { price.per, 1000 })
end

local function percentage(price, position)
  local cost = exact.from(price.cost)
  if price.units == 0 then
    return exact.divide_half_up(exact.multiply(cost, weigh(price, position, position + 1)), { 100000000 })
  end
  local weighted = weigh(price, position, position + price.units)
  return exact.divide_half_up(exact.multiply(cost, weighted), { price.units, 100000000 })
end

-- Nano-dollars of the fee for price.units used after `position` units.
function tiers.fee(price, position)
  if price.kind == 'percentage' then return percentage(price, position) end
  return running_total(price, position + price.units) - running_total(price, position)
end

-- The whole fee of a request of which `before` units have been priced at `fee` already, at a position that contains them:
-- what is new is priced where the counter stands now, so that the totals of all requests still add up.
function tiers.whole_fee(price, position, before, fee)
  if price.kind == 'percentage' then return math.max(fee, percentage(price, math.max(0, position - before))) end
  price.units = math.max(0, price.units - before)
  return fee + tiers.fee(price, position)
end
