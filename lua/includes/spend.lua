-- The counters of a spend key: a hash on its wallet's shard. Needs: wallet.
--
--   open          a name of their own, once they were made from the record; until then nothing below stands in it but
--                 p:<n>
--   d, w, m       numbers of the day, week and month that the counters are of ("t" stands for all time: 0)
--   sd, sw, sm, st   nano-dollars spent in them
--   nd, nw, nm, nt   requests that ended in them
--   held, calls   nano-dollars that open holds of the key reserve, and how many holds those are
--   bucket        as in the wallet
--   used          when a call was last made with the key, ms since 1970
--   p:<n>         what the journal entry n counted while the counters were not open: "spent requests d w m"
--
-- A script gets `cycles`, the numbers of day, week and month at its moment, as "d w m". A later one begins a counter
-- anew; an earlier one, of a clock that is behind, counts in all time only.
-- A hold says in its `kc` in which counters it is counted, by their name: those that are lost take nothing with them.
-- A function that makes the functions: calls without a spend key do not pay for them.

local function spending()
  local spend, SPANS = {}, { 'd', 'w', 'm', 't' }

  function spend.read(key, cycles)
    local f = redis.call('HMGET', key, 'open', 'd', 'sd', 'nd', 'w', 'sw', 'nw', 'm', 'sm', 'nm', 't', 'st', 'nt',
      'held', 'calls')
    local k = { open = f[1], held = tonumber(f[14] or '0'), calls = tonumber(f[15] or '0') }
    local asked = string.gmatch(cycles .. ' 0', '%d+')
    for i, span in ipairs(SPANS) do
      local number, stored = tonumber(asked()), tonumber(f[3 * i - 1] or '0')
      local began = number > stored
      k[span] = {
        number = math.max(number, stored), current = number >= stored, changed = began,
        spent = began and 0 or tonumber(f[3 * i] or '0'), requests = began and 0 or tonumber(f[3 * i + 1] or '0'),
      }
    end
    return k
  end

  -- What holds may still reserve under a limit ('' for none: nil) of a cycle.
  function spend.left(k, limit, span)
    if limit == '' then return nil end
    return tonumber(limit) - k[span].spent - k.held
  end

  function spend.add(k, spent, requests)
    for _, span in ipairs(SPANS) do
      local counter = k[span]
      if counter.current then
        counter.spent = wallet.exact(counter.spent + spent)
        counter.requests = counter.requests + requests
        counter.changed = true
      end
    end
  end

  -- One hold more. The caller writes `kc`.
  function spend.reserve(k, amount)
    k.held, k.calls = k.held + amount, k.calls + 1
  end

  -- One hold less, if it is counted: one that was made again while the counters were not open may not be.
  function spend.give_back(k, hold, amount)
    if not k.open or redis.call('HGET', hold, 'kc') ~= k.open then return end
    k.held, k.calls = k.held - amount, k.calls - 1
  end

  -- What follows are more fields and their values.
  function spend.write(key, k, ...)
    local fields = { 'held', wallet.exact(k.held), 'calls', k.calls, ... }
    for _, span in ipairs(SPANS) do
      local counter = k[span]
      if counter.changed then
        for _, each in ipairs({ span, counter.number, 's' .. span, counter.spent, 'n' .. span, counter.requests }) do
          fields[#fields + 1] = each
        end
      end
    end
    redis.call('HSET', key, unpack(fields))
  end

  -- Write what `add` and `give_back` made of the counters; `number` is the journal's of what was added.
  function spend.keep(key, k, number, spent, requests, cycles)
    if k.open then return spend.write(key, k) end
    redis.call('HSET', key, string.format('p:%.0f', number), string.format('%.0f %.0f %s', spent, requests, cycles))
  end

  return spend
end
