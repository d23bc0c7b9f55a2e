-- Take due refs, oldest first: each leaves due for lease under a new fence. Paused kinds, kinds at their cap or rate and
-- suspects are passed by, so that they hold up no others.
-- FLAGS: allow-oom
-- KEYS: the common ones, hints of the lane, rate limit of each kind.
-- ARGV: worker, lease, lead, limit, hint to drop ('' for none), 1 for one suspect alone, number of kinds, for each kind
--   (kind, lane, cap, rate, per), then the only refs to take, if any.
-- Returns {now, fence, 1 if more is due, 1 if suspects are due, the refs (a line each), their due times (a blank between),
--   then (position, trouble) of those in trouble}.
local worker, lease, lead, limit = ARGV[A + 1], tonumber(ARGV[A + 2]), tonumber(ARGV[A + 3]), tonumber(ARGV[A + 4])
local hint, alone, nk = ARGV[A + 5], ARGV[A + 6] == '1', tonumber(ARGV[A + 7])
local horizon = now + lead
local HINTS = KEYS[X + 1]
local N = A + 7 + 5 * nk
local named
if #ARGV > N then
  named = {}
  for i = N + 1, #ARGV do named[ARGV[i]] = true end
end
if alone then limit = math.min(limit, 1) end

local any_trouble = redis.call('HLEN', TROUBLE) > 0
local fleet_paused = is_paused('fleet')
local found, more, suspects = {}, false, false
for k = 1, nk do
  local b = A + 7 + 5 * (k - 1)
  local kind, lane, cap = kinds[ARGV[b + 1]], ARGV[b + 2], tonumber(ARGV[b + 3])
  local rate, per = tonumber(ARGV[b + 4]), tonumber(ARGV[b + 5])
  local room = limit
  if fleet_paused or is_paused('lane:' .. lane) or is_paused('kind:' .. kind.name) then room = 0 end
  if room > 0 and cap > 0 then room = math.min(room, cap - redis.call('ZCARD', kind.lease)) end
  if room > 0 and rate > 0 then
    -- GCRA: `tat` runs ahead of the clock by one interval for each start, at most by `per`.
    local tat = math.max(tonumber(redis.call('GET', KEYS[X + 1 + k]) or 0), now)
    -- A clock that stepped back leaves `tat` far ahead; nobody can be further ahead than one `per`.
    if tat > now + per + 1 then
      tat = now + per
      redis.call('SET', KEYS[X + 1 + k], str(tat), 'PX', str(math.ceil(per / 1000) + 60000))
    end
    kind.tat, kind.each, kind.limit = tat, per / rate, KEYS[X + 1 + k]
    room = math.min(room, math.floor((now + per - tat) / kind.each + 0.000001))
  end
  local offset, page = 0, math.max(math.min(room + 16, 256), 16)
  local mine = 0
  while room > 0 and mine <= room and offset < 4096 do
    local got = redis.call('ZRANGEBYSCORE', kind.due, '-inf', str(horizon), 'WITHSCORES', 'LIMIT', offset, page)
    if #got == 0 then break end
    local refs = {}
    for g = 1, #got, 2 do refs[#refs + 1] = got[g] end
    local trouble = any_trouble and redis.call('HMGET', TROUBLE, unpack(refs)) or {}
    for r = 1, #refs do
      local suspect = trouble[r] and string.match(trouble[r], '^%d+ %d+ %d+ %d+ %d+ (%d+) ') ~= '0'
      suspects = suspects or (suspect and true or false)
      if (suspect and true or false) == alone and (not named or named[refs[r]]) then
        mine = mine + 1
        if mine > room then
          more = true
          break
        end
        found[#found + 1] = { got[2 * r], refs[r], trouble[r], kind }
      end
    end
    if #refs < page then break end
    offset, page = offset + page, 256
  end
end
if nk > 1 then table.sort(found, function(a, b) return tonumber(a[1]) < tonumber(b[1]) end) end
if #found > limit then more = true end

local take = math.min(#found, limit)
local reply = { str(now), '0', more and '1' or '0', suspects and '1' or '0', '', '' }
if take > 0 then
  local fence = math.max(tonumber(redis.call('GET', FENCE) or 0) + 1, now)
  redis.call('SET', FENCE, str(fence))
  reply[2] = str(fence)
  local holders, refs, dues = {}, {}, {}
  local expiry, head, tail = str(now + lease), reply[2] .. ' h ', ' ' .. reply[1] .. ' ' .. worker
  for i = 1, take do
    local due, ref, trouble, kind = found[i][1], found[i][2], found[i][3], found[i][4]
    if not kind.took then kind.took, kind.gone = {}, {} end
    kind.took[#kind.took + 1], kind.took[#kind.took + 2] = expiry, ref
    kind.gone[#kind.gone + 1] = ref
    holders[#holders + 1], holders[#holders + 2] = ref, head .. due .. tail
    refs[i], dues[i] = ref, due
    if trouble then reply[#reply + 1], reply[#reply + 2] = str(i), trouble end
  end
  reply[5], reply[6] = table.concat(refs, '\n'), table.concat(dues, ' ')
  redis.call('HSET', HOLDER, unpack(holders))
  for _, kind in ipairs(order) do
    if kind.took then
      redis.call('ZADD', kind.lease, unpack(kind.took))
      redis.call('ZREM', kind.due, unpack(kind.gone))
      if kind.tat then
        local tat = kind.tat + #kind.gone * kind.each
        redis.call('SET', kind.limit, str(tat), 'PX', str(math.ceil((tat - now) / 1000) + 60000))
      end
    end
  end
end
if hint ~= '' and redis.call('ZREM', HINTS, hint) == 1 and more then wake_for(now) end
return answer(reply)
