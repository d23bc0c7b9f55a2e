-- Forget entities: they leave every set at once. A running one is marked, so that its outcome is dropped.
-- FLAGS: allow-oom
-- KEYS: the common ones, record of each.
-- ARGV: event, then the refs.
-- Returns for each: deleted, cancelling (it is running) or absent.
local reply = {}
for i = 1, #ARGV - A - 1 do
  local ref = ARGV[A + 1 + i]
  local kind = kind_of(ref)
  local held = redis.call('HGET', HOLDER, ref)
  local found = 'absent'
  if held then
    local h = holder_of(held)
    if h.phase ~= 'x' then found = 'cancelling' end
    h.phase = 'x'
    redis.call('HSET', HOLDER, ref, holder_text(h))
  end
  local had = redis.call('ZREM', kind.due, ref) + redis.call('ZREM', kind.idle, ref) + redis.call('ZREM', kind.parked, ref)
  had = had + redis.call('HDEL', WISH, ref) + redis.call('DEL', KEYS[X + i])
  redis.call('HDEL', TROUBLE, ref)
  redis.call('HDEL', PAUSED, 'ref:' .. ref)
  if found == 'absent' and had > 0 then found = held and 'cancelling' or 'deleted' end
  if found ~= 'absent' then event(ref, ARGV[A + 1]) end
  tell(ref)
  reply[i] = found
end
return answer(reply)
