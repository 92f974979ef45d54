-- Take wallets out of use until they are restored: Redis has come back with less of them than PostgreSQL has seen.
-- A wallet without a status is unknown to every script, so this costs them nothing.
--
-- KEYS  1 wallets to restore (set of wallet ids), then wallets
-- ARGV  1 '1': whatever Redis shows | '': only those behind the sequence number given
--       then for each wallet its id and the sequence number that PostgreSQL has
-- Returns  {'marked', number}   so many were in use and are not any more; one that is absent stays absent

local marked = 0
for i = 2, #KEYS do
  local id, recorded = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local now = redis.call('HMGET', KEYS[i], 'status', 'seq')
  if now[1] and (ARGV[1] == '1' or tonumber(now[2] or '0') < tonumber(recorded)) then
    redis.call('HDEL', KEYS[i], 'status')
    redis.call('SADD', KEYS[1], id)
    marked = marked + 1
  end
end
return { 'marked', marked }
