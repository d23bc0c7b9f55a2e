-- Say that a worker lives, and publish its kinds where no younger live worker has.
-- FLAGS: allow-oom
-- KEYS: the common ones, workers, worker, kinds.
-- ARGV: worker, born, ttl, info, then (kind, policy) for each.
-- Returns now. `topology` grows if workers or kinds changed.
local WORKERS, WORKER, KINDS = KEYS[X + 1], KEYS[X + 2], KEYS[X + 3]
local worker, born = ARGV[A + 1], tonumber(ARGV[A + 2])
local known = redis.call('ZSCORE', WORKERS, worker)
redis.call('ZADD', WORKERS, str(now + tonumber(ARGV[A + 3])), worker)
redis.call('HSET', WORKER, worker, ARGV[A + 4])
local changed = not known
for i = A + 5, #ARGV, 2 do
  local mine = str(born) .. ' ' .. worker .. '|' .. ARGV[i + 1]
  local had = redis.call('HGET', KINDS, ARGV[i])
  if had ~= mine then
    local their_born, their_worker = string.match(had or '', '^(%d+) ([^|]*)|')
    local lives = their_worker and tonumber(redis.call('ZSCORE', WORKERS, their_worker) or 0) > now
    if not lives or tonumber(their_born) <= born then
      redis.call('HSET', KINDS, ARGV[i], mine)
      changed = true
    end
  end
end
if changed then redis.call('HINCRBY', META, 'topology', 1) end
if changed then wake_for(now) end
return answer(str(now))
