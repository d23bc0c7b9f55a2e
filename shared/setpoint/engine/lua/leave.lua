-- Say that a worker is gone. Its leases run out by themselves.
-- FLAGS: allow-oom
-- KEYS: the common ones, workers, worker.
-- ARGV: worker.
-- Returns 1 if it was there.
local was = redis.call('ZREM', KEYS[X + 1], ARGV[A + 1])
redis.call('HDEL', KEYS[X + 2], ARGV[A + 1])
if was == 1 then redis.call('HINCRBY', META, 'topology', 1) end
return answer(was)
