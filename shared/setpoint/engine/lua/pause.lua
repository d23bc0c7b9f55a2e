-- Pause a fleet, lane or kind: claim and promote pass it by; enqueues are still accepted.
-- FLAGS: allow-oom
-- KEYS: the common ones.
-- ARGV: target, until (0: until resumed), who and why.
-- Returns 1 if it was not paused before.
local fresh = is_paused(ARGV[A + 1]) and 0 or 1
redis.call('HSET', PAUSED, ARGV[A + 1], ARGV[A + 2] .. ' ' .. ARGV[A + 3])
return answer(fresh)
