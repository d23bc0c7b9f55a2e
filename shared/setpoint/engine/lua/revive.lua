-- Take an entity out of parked: due when its wish says, or now. Also takes back a pause asked for while it runs.
-- FLAGS: allow-oom
-- KEYS: the common ones.
-- ARGV: ref, 1 to forget its failures and crashes.
-- Returns {code, due}: s scheduled, w it is running, a it was not parked.
local ref = ARGV[A + 1]
local kind = kind_of(ref)
redis.call('HDEL', PAUSED, 'ref:' .. ref)
local held = redis.call('HGET', HOLDER, ref)
if held then
  local h = holder_of(held)
  if h.phase == 'p' then
    h.phase = 'h'
    redis.call('HSET', HOLDER, ref, holder_text(h))
    return answer({ 'w', str(h.due) })
  end
  return answer({ 'a', '0' })
end
if not redis.call('ZSCORE', kind.parked, ref) then return answer({ 'a', '0' }) end
local due = tonumber(redis.call('HGET', WISH, ref) or now)
redis.call('ZADD', kind.due, str(due), ref)
redis.call('ZREM', kind.parked, ref)
redis.call('HDEL', WISH, ref)
if ARGV[A + 2] == '1' then
  redis.call('HDEL', TROUBLE, ref)
else
  put_trouble(ref, with_reason(redis.call('HGET', TROUBLE, ref), '-'))
end
wake_for(due)
return answer({ 's', str(due) })
