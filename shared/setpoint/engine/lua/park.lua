-- Pause one entity: it keeps its due time as a wish and is evaluated no more until it is revived.
-- FLAGS: allow-oom
-- KEYS: the common ones.
-- ARGV: ref, until (0: until revived), who and why.
-- Returns 'parked', or 'parking' while it is running: the evaluation ends first.
local ref = ARGV[A + 1]
local kind = kind_of(ref)
local reply = 'parked'
redis.call('HSET', PAUSED, 'ref:' .. ref, ARGV[A + 2] .. ' ' .. ARGV[A + 3])
local held = redis.call('HGET', HOLDER, ref)
if held then
  local h = holder_of(held)
  if h.phase == 'h' then
    h.phase = 'p'
    redis.call('HSET', HOLDER, ref, holder_text(h))
  end
  reply = 'parking'
else
  local due = redis.call('ZSCORE', kind.due, ref)
  local trouble = redis.call('HGET', TROUBLE, ref)
  -- What is parked as poison or failed stays so: resuming must not set it free.
  if not redis.call('ZSCORE', kind.parked, ref) then
    if due then redis.call('HSET', WISH, ref, due) end
    put_trouble(ref, with_reason(trouble, 'paused'))
    redis.call('ZADD', kind.parked, str(now), ref)
    redis.call('ZREM', kind.due, ref)
    redis.call('ZREM', kind.idle, ref)
  end
end
return answer(reply)
