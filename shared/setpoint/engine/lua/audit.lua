-- Check the invariants for some refs of one kind and repair what breaks them.
-- FLAGS: allow-oom
-- KEYS: the common ones.
-- ARGV: lease, then the refs.
-- Returns {in two places, leases without holder, leases too far ahead, holders without lease}, each repaired.
local kind, lease = order[1], tonumber(ARGV[A + 1])
local doubled, unheld, cut, orphans = 0, 0, 0, 0
for i = A + 2, #ARGV do
  local ref = ARGV[i]
  local held = redis.call('HGET', HOLDER, ref)
  local expiry = redis.call('ZSCORE', kind.lease, ref)
  if expiry and not held then
    redis.call('ZADD', kind.due, str(now), ref)
    redis.call('ZREM', kind.lease, ref)
    unheld, expiry = unheld + 1, nil
    wake_for(now)
  elseif held and not expiry then
    -- Unless it waits somewhere, nobody would ever evaluate it again.
    local h = holder_of(held)
    local placed = redis.call('ZSCORE', kind.due, ref) or redis.call('ZSCORE', kind.idle, ref)
    if not placed and h.phase ~= 'x' and not redis.call('ZSCORE', kind.parked, ref) then
      redis.call('ZADD', kind.due, str(h.due), ref)
      wake_for(h.due)
    end
    redis.call('HDEL', HOLDER, ref)
    orphans = orphans + 1
  elseif expiry and tonumber(expiry) > now + 2 * lease then
    redis.call('ZADD', kind.lease, str(now + lease), ref)
    cut = cut + 1
  end
  -- A lease outranks parked, parked outranks due, due outranks idle.
  local first = expiry ~= nil and expiry ~= false
  local extra = 0
  for _, set in ipairs({ 'parked', 'due', 'idle' }) do
    if redis.call('ZSCORE', kind[set], ref) then
      if first then extra = extra + redis.call('ZREM', kind[set], ref) end
      first = true
    end
  end
  if extra > 0 then doubled = doubled + 1 end
end
return answer({ tostring(doubled), tostring(unheld), tostring(cut), tostring(orphans) })
