-- End evaluations: with the current fence each ref goes to its next place, else the outcome is refused. A wish made
-- meanwhile is never lost: the ref is due again then. A deleted ref's outcome is dropped.
-- FLAGS: allow-oom
-- KEYS: the common ones, records of those that write one.
-- ARGV: events kept, 1 to wake, number of counters, (field, count) for each, then for each ref (ref, fence, place, delay,
--   trouble, number of its record key or 0, state, event). Place: i idle, d due, p failed, P poison, f forget, g gone.
-- Returns one letter a ref: o accepted, s stale, x deleted.
local counters = tonumber(ARGV[A + 3])
local p = A + 3 + 2 * counters
local n = (#ARGV - p) / 8
local refs = {}
for i = 1, n do refs[i] = ARGV[p + 8 * i - 7] end
local holders = n > 0 and redis.call('HMGET', HOLDER, unpack(refs)) or {}
local wishes = n > 0 and redis.call('HLEN', WISH) > 0 and redis.call('HMGET', WISH, unpack(refs)) or {}
local waited = n > 0 and redis.call('HLEN', WAITERS) > 0 and redis.call('HMGET', WAITERS, unpack(refs)) or {}
local any_trouble = redis.call('HLEN', TROUBLE) > 0
local statuses, told, soonest = {}, {}, FAR
local freed, unwished, troubled, untroubled = {}, {}, {}, {}

local function put(kind, set, score, ref)
  if not kind.add then kind.add, kind.left = {}, {} end
  local add = kind.add[set]
  if not add then
    add = {}
    kind.add[set] = add
  end
  add[#add + 1], add[#add + 2] = score, ref
end

for i = 1, n do
  local b = p + 8 * (i - 1)
  local ref, fence, place, delay, trouble = refs[i], ARGV[b + 2], ARGV[b + 3], tonumber(ARGV[b + 4]), ARGV[b + 5]
  local record, state, text = tonumber(ARGV[b + 6]), ARGV[b + 7], ARGV[b + 8]
  local kind = kind_of(ref)
  local h = holders[i] and holder_of(holders[i])
  local wish = wishes[i] and tonumber(wishes[i])
  if not h or h.fence ~= fence then
    statuses[i] = 's'
  elseif h.phase == 'x' then
    statuses[i] = 'x'
    if redis.call('HEXISTS', PAUSED, 'ref:' .. ref) == 1 then
      -- Paused after the delete: what is re-created waits, and keeps its wish.
      put(kind, 'parked', str(now), ref)
      troubled[#troubled + 1], troubled[#troubled + 2] = ref, with_reason('', 'paused')
      wish = nil
    elseif wish then
      put(kind, 'due', str(wish), ref)
      soonest = math.min(soonest, wish)
    end
  else
    statuses[i] = 'o'
    local due = place == 'd' and now + delay or nil
    if wish and place ~= 'P' then
      due = math.min(wish, due or FAR)
      if place ~= 'g' then place = 'd' end
    end
    if place == 'g' then
      redis.call('DEL', KEYS[X + record])
      record, trouble = 0, ''
      place = due and 'd' or 'f'
    end
    if h.phase == 'p' and place ~= 'P' then
      put(kind, 'parked', str(now), ref)
      if due then
        redis.call('HSET', WISH, ref, str(due))
        wish = nil
      end
      trouble = with_reason(trouble, 'paused')
    elseif place == 'd' then
      put(kind, 'due', str(due), ref)
      soonest = math.min(soonest, due)
    elseif place == 'i' then
      put(kind, 'idle', str(delay >= FAR and FAR or now + delay), ref)
    elseif place == 'p' then
      put(kind, 'parked', str(now), ref)
      trouble = with_reason(trouble, 'failed')
    elseif place == 'P' then
      put(kind, 'parked', str(now), ref)
      trouble = with_reason(trouble, 'poison')
    end
    if trouble ~= '' then
      troubled[#troubled + 1], troubled[#troubled + 2] = ref, trouble
    elseif any_trouble then
      untroubled[#untroubled + 1] = ref
    end
    if record > 0 and state ~= '' and redis.call('HGET', KEYS[X + record], 'state') ~= state then
      redis.call('HSET', KEYS[X + record], 'state', state)
      local rev = redis.call('HINCRBY', KEYS[X + record], 'rev', 1)
      redis.call('HSET', KEYS[X + record], 'h' .. (rev % 8), str(now) .. ' state ' .. state)
    end
    if text ~= '' then told[#told + 1], told[#told + 2] = ref, text end
  end
  if statuses[i] ~= 's' then
    if not kind.left then kind.add, kind.left = {}, {} end
    kind.left[#kind.left + 1] = ref
    freed[#freed + 1] = ref
    if wish then unwished[#unwished + 1] = ref end
  end
end

for _, kind in ipairs(order) do
  if kind.left then
    for set, add in pairs(kind.add) do redis.call('ZADD', kind[set], unpack(add)) end
    redis.call('ZREM', kind.lease, unpack(kind.left))
  end
end
if #freed > 0 then redis.call('HDEL', HOLDER, unpack(freed)) end
if #unwished > 0 then redis.call('HDEL', WISH, unpack(unwished)) end
if #troubled > 0 then redis.call('HSET', TROUBLE, unpack(troubled)) end
if #untroubled > 0 then redis.call('HDEL', TROUBLE, unpack(untroubled)) end
if #told > 0 then redis.call('XADD', EVENTS, 'MAXLEN', '~', ARGV[A + 1], '*', unpack(told)) end
for c = 1, counters do redis.call('HINCRBY', COUNTERS, ARGV[A + 2 + 2 * c], ARGV[A + 3 + 2 * c]) end
for i = 1, n do
  if waited[i] and statuses[i] ~= 's' then
    redis.call('PUBLISH', string.sub(META, 1, -5) .. 'at:' .. refs[i], '1')
  end
end
if ARGV[A + 2] == '1' then wake_for(soonest) end
return answer(table.concat(statuses))
