-- Make idle refs due whose time has come (resync), spread evenly so that they do not come as a herd.
-- FLAGS: allow-oom
-- KEYS: the common ones.
-- ARGV: spread, limit.
-- Returns how many.
local kind = order[1]
local spread, limit = tonumber(ARGV[A + 1]), tonumber(ARGV[A + 2])
local refs = redis.call('ZRANGEBYSCORE', kind.idle, '-inf', str(now), 'LIMIT', 0, limit)
if #refs > 0 then
  local add = {}
  for i, ref in ipairs(refs) do
    add[#add + 1], add[#add + 2] = str(now + math.floor(spread * (i - 1) / #refs)), ref
  end
  redis.call('ZADD', kind.due, unpack(add))
  redis.call('ZREM', kind.idle, unpack(refs))
  wake_for(now)
end
return answer(#refs)
