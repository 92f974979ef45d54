-- Exact integer products and quotients beyond 2^53, for prices.
-- A big number is a little-endian array of limbs in base 1000; every intermediate stays below 2^53.

local EXACT_LIMIT = 9007199254740992
local BASE = 1000

local exact = {}

-- Limbs of a whole number 0 <= n < 2^53.
function exact.from(n)
  assert(n >= 0 and n < EXACT_LIMIT and n == math.floor(n), 'not an exact whole number')
  local limbs = {}
  repeat
    local rest = math.floor(n / BASE)
    limbs[#limbs + 1] = n - rest * BASE
    n = rest
  until n == 0
  return limbs
end

function exact.add(a, b)
  local sum, carry = {}, 0
  for i = 1, math.max(#a, #b) do
    local limb = (a[i] or 0) + (b[i] or 0) + carry
    carry = limb >= BASE and 1 or 0
    sum[i] = limb - carry * BASE
  end
  if carry > 0 then sum[#sum + 1] = carry end
  return sum
end

function exact.multiply(a, b)
  local product = {}
  for i = 1, #a + #b do product[i] = 0 end
  for i = 1, #a do
    local carry = 0
    for j = 1, #b do
      local limb = product[i + j - 1] + a[i] * b[j] + carry
      carry = math.floor(limb / BASE)
      product[i + j - 1] = limb - carry * BASE
    end
    product[i + #b] = product[i + #b] + carry
  end
  return product
end

-- Floor of a big number by a divisor below 9e12, as limbs.
local function floor_divide(a, divisor)
  assert(divisor > 0 and divisor <= 9000000000000, 'divisor out of range')
  local quotient, rest = {}, 0
  for i = #a, 1, -1 do
    local part = rest * BASE + a[i]
    local digit = math.floor(part / divisor)
    quotient[i] = digit
    rest = part - digit * divisor
  end
  return quotient
end

local function to_number(a)
  local n = 0
  for i = #a, 1, -1 do n = n * BASE + a[i] end
  assert(n < EXACT_LIMIT, 'amount beyond 2^53')
  return n
end

-- a / (product of divisors), rounded half up, as a number below 2^53:
-- floor((2a + d) / 2d), and a floor by 2d is the floors by its factors in turn.
function exact.divide_half_up(a, divisors)
  local d = exact.from(1)
  for _, divisor in ipairs(divisors) do d = exact.multiply(d, exact.from(divisor)) end
  local quotient = floor_divide(exact.add(exact.add(a, a), d), 2)
  for _, divisor in ipairs(divisors) do quotient = floor_divide(quotient, divisor) end
  return to_number(quotient)
end
