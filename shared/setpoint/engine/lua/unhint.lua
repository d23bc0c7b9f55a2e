-- Forget hints that the RQ list no longer holds, so that new ones are rung.
-- FLAGS: allow-oom
-- KEYS: the common ones, hints of the lane.
-- ARGV: hint ids.
-- Returns how many were forgotten.
local gone = 0
for i = A + 1, #ARGV do gone = gone + redis.call('ZREM', KEYS[X + 1], ARGV[i]) end
if gone > 0 then wake_for(now) end
return answer(gone)
