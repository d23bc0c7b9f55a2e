-- Drop a due time, or the wish of a leased or paused ref. A known entity stays known.
-- FLAGS: allow-oom
-- KEYS: the common ones.
-- ARGV: ref, 1 to keep it in idle.
-- Returns 1 if there was one.
local ref = ARGV[A + 1]
local kind = kind_of(ref)
local dropped = redis.call('HDEL', WISH, ref)
if redis.call('ZSCORE', kind.due, ref) then
  if ARGV[A + 2] == '1' then
    redis.call('ZADD', kind.idle, str(FAR), ref)
  else
    redis.call('HDEL', TROUBLE, ref)
  end
  dropped = redis.call('ZREM', kind.due, ref)
end
return answer(dropped)
