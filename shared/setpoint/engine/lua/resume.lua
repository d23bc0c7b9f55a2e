-- Take back a pause of a fleet, lane or kind, and wake the promoter for what became due meanwhile.
-- FLAGS: allow-oom
-- KEYS: the common ones.
-- ARGV: target.
-- Returns 1 if it was paused.
local was = redis.call('HDEL', PAUSED, ARGV[A + 1])
wake_for(now)
return answer(was)
