-- Move a due time, later too; for a leased or paused ref, replace the wish.
-- KEYS: the common ones.
-- ARGV: ref, 'a' or 'r', us.
-- Returns {code, due} as enqueue does.
local ref = ARGV[A + 1]
local kind, due = kind_of(ref), due_time(ARGV[A + 2], ARGV[A + 3])
if redis.call('ZSCORE', kind.due, ref) then
  redis.call('ZADD', kind.due, str(due), ref)
  wake_for(due)
  return answer({ 's', str(due) })
end
local leased = redis.call('ZSCORE', kind.lease, ref)
local paused = redis.call('ZSCORE', kind.parked, ref) and reason_of(redis.call('HGET', TROUBLE, ref)) == 'paused'
if leased or paused then
  redis.call('HSET', WISH, ref, str(due))
  return answer({ 'w', str(due) })
end
local code, then_due = ask_for(kind, ref, due)
return answer({ code, str(then_due) })
