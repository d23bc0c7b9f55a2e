-- Put expired leases back to due at their old time, marked suspect. Never parks, never charges.
-- FLAGS: allow-oom
-- KEYS: the common ones.
-- ARGV: gap, wait, lease, limit.
-- Returns {now, 1 if holding off, next expiry (FAR: none), refs...}. After a gap between ticks (of any reaper) live workers
--   get `wait` to beat first; such a wait cannot begin again within `lease`.
local gap, wait, lease, limit = tonumber(ARGV[A + 1]), tonumber(ARGV[A + 2]), tonumber(ARGV[A + 3]), tonumber(ARGV[A + 4])
local last = tonumber(redis.call('HGET', META, 'reap_tick') or 0)
local held = tonumber(redis.call('HGET', META, 'reap_hold') or 0)
redis.call('HSET', META, 'reap_tick', str(now))
if math.abs(now - last) > gap and math.abs(now - held) > lease then
  redis.call('HSET', META, 'reap_hold', str(now))
  held = now
end
if now >= held and now - held < wait then return answer({ str(now), '1', str(held + wait) }) end
local reply = { str(now), '0', '' }
local expiry = FAR
for _, kind in ipairs(order) do
  local expired = redis.call('ZRANGEBYSCORE', kind.lease, '-inf', str(now), 'LIMIT', 0, limit)
  for _, ref in ipairs(expired) do
    local text = redis.call('HGET', HOLDER, ref)
    local h = text and holder_of(text) or { phase = 'h', due = now }
    local due = hand_back(kind, ref, h, true)
    event(ref, 'reaped ' .. (h.worker or '?'))
    wake_for(due)
    reply[#reply + 1] = ref
  end
  local ahead = redis.call('ZRANGE', kind.lease, 0, 0, 'WITHSCORES')[2]
  if ahead then expiry = math.min(expiry, tonumber(ahead)) end
end
reply[3] = str(expiry)
if #reply > 3 then redis.call('HINCRBY', COUNTERS, 'takeovers', #reply - 3) end
return answer(reply)
