-- Extend the leases a worker still holds, and its own life.
-- FLAGS: allow-oom
-- KEYS: the common ones, workers.
-- ARGV: worker, lease, ttl of the worker, then (ref, fence) for each.
-- Returns {now, {refs lost}, {refs deleted or re-created meanwhile}}.
local worker, expiry = ARGV[A + 1], str(now + tonumber(ARGV[A + 2]))
local lost, cancelled, held = {}, {}, {}
local refs = {}
for i = A + 4, #ARGV, 2 do refs[#refs + 1] = ARGV[i] end
local holders = #refs > 0 and redis.call('HMGET', HOLDER, unpack(refs)) or {}
for i, ref in ipairs(refs) do
  local h = holders[i] and holder_of(holders[i])
  if not h or h.fence ~= ARGV[A + 3 + 2 * i] then
    lost[#lost + 1] = ref
  else
    if h.phase == 'x' then cancelled[#cancelled + 1] = ref end
    local kind = kind_of(ref)
    if not held[kind] then held[kind] = {} end
    local add = held[kind]
    add[#add + 1], add[#add + 2] = expiry, ref
  end
end
for kind, add in pairs(held) do redis.call('ZADD', kind.lease, 'XX', unpack(add)) end
redis.call('ZADD', KEYS[X + 1], 'XX', str(now + tonumber(ARGV[A + 3])), worker)
return answer({ str(now), lost, cancelled })
