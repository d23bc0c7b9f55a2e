-- For each lane: if something is due and there is room, note a hint and return the head of what is due.
-- FLAGS: allow-oom
-- KEYS: the common ones, hints of each lane.
-- ARGV: lead, limit, number of lanes, then for each: lane, room, hint id, number of kinds, kinds.
-- Returns {now, topology, next due time ahead (FAR: none), then for each lane {1 if noted, oldest due, how many due, hints
--   out, since when the oldest is, refs...}}.
local lead, limit, lanes = tonumber(ARGV[A + 1]), tonumber(ARGV[A + 2]), tonumber(ARGV[A + 3])
local horizon = now + lead
local fleet_paused = is_paused('fleet')
local reply = { str(now), redis.call('HGET', META, 'topology') or '0', '' }
local ahead = FAR
local p = A + 3
for l = 1, lanes do
  local lane, room, hint, nk = ARGV[p + 1], tonumber(ARGV[p + 2]), ARGV[p + 3], tonumber(ARGV[p + 4])
  local HINTS = KEYS[X + l]
  local out = redis.call('ZCARD', HINTS)
  local oldest_hint = redis.call('ZRANGE', HINTS, 0, 0, 'WITHSCORES')[2] or '0'
  local stopped = fleet_paused or is_paused('lane:' .. lane)
  local heads, backlog = {}, 0
  if not stopped then
    for k = 1, nk do
      local kind = kinds[ARGV[p + 4 + k]]
      if not is_paused('kind:' .. kind.name) then
        local next_due = redis.call('ZRANGE', kind.due, 0, 0, 'WITHSCORES')[2]
        if next_due and tonumber(next_due) <= horizon then
          if out < room then
            local got = redis.call('ZRANGEBYSCORE', kind.due, '-inf', str(horizon), 'WITHSCORES', 'LIMIT', 0, limit)
            for g = 1, #got, 2 do heads[#heads + 1] = { tonumber(got[g + 1]), got[g] } end
            backlog = backlog + redis.call('ZCOUNT', kind.due, '-inf', str(horizon))
          end
          next_due = redis.call('ZRANGEBYSCORE', kind.due, '(' .. str(horizon), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
        end
        if next_due then ahead = math.min(ahead, tonumber(next_due)) end
      end
    end
  end
  local entry = { '0', '0', tostring(backlog), tostring(out), oldest_hint }
  if #heads > 0 then
    if nk > 1 then table.sort(heads, function(a, b) return a[1] < b[1] end) end
    redis.call('ZADD', HINTS, str(now), hint)
    entry = { '1', str(heads[1][1]), tostring(backlog), tostring(out + 1), oldest_hint }
    for h = 1, math.min(#heads, limit) do entry[5 + h] = heads[h][2] end
  end
  reply[3 + l] = entry
  p = p + 4 + nk
end
reply[3] = str(ahead)
return answer(reply)
