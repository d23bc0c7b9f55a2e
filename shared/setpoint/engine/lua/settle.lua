-- End evaluations: with the current fence each ref goes to its next place, else the outcome is refused. A wish made
-- meanwhile is never lost: the ref is due again then. A deleted ref's outcome is dropped; trouble of a goal that was given
-- up meanwhile is forgotten.
-- FLAGS: allow-oom
-- KEYS: the common ones, records of the refs of those groups that write one.
-- ARGV: events kept, 1 to wake, number of counters, (field, count) for each, then groups of refs that end alike: (number
--   of refs, fence, place, delay, trouble, 1 if it writes records, state, event, then the refs). Place: i idle, d due,
--   p failed, P poison, f forget, g gone.
-- Returns one letter a ref, in order: o accepted, s stale, x deleted.
local counters = tonumber(ARGV[A + 3])
local groups, refs = {}, {}
local at = A + 4 + 2 * counters
while at <= #ARGV do
  groups[#groups + 1] = at
  local last = at + 7 + tonumber(ARGV[at])
  for i = at + 8, last do refs[#refs + 1] = ARGV[i] end
  at = last + 1
end
local n = #refs
local holders = n > 0 and redis.call('HMGET', HOLDER, unpack(refs)) or {}
local wishes = n > 0 and redis.call('HLEN', WISH) > 0 and redis.call('HMGET', WISH, unpack(refs)) or {}
local waited = n > 0 and redis.call('HLEN', WAITERS) > 0 and redis.call('HMGET', WAITERS, unpack(refs)) or {}
local any_trouble = redis.call('HLEN', TROUBLE) > 0
local statuses, told, soonest = {}, {}, FAR
local freed, unwished, troubled, untroubled = {}, {}, {}, {}

local function put(kind, set, score, ref)
  local add = kind.add[set]
  if not add then
    add = {}
    kind.add[set] = add
  end
  add[#add + 1], add[#add + 2] = score, ref
end

local i, key = 0, X
for _, g in ipairs(groups) do
  local count, fence, delay = tonumber(ARGV[g]), ARGV[g + 1], tonumber(ARGV[g + 3])
  local recorded, state, text = ARGV[g + 5] == '1', ARGV[g + 6], ARGV[g + 7]
  local held_now = fence .. ' h '
  local rest = str(delay >= FAR and FAR or now + delay)
  local accepted = {}
  for _ = 1, count do
    i = i + 1
    local ref, held, record, place, trouble = refs[i], holders[i], nil, ARGV[g + 2], ARGV[g + 4]
    if recorded then
      key = key + 1
      record = KEYS[key]
    end
    local kind = kind_of(ref)
    if not kind.left then kind.add, kind.left = {}, {} end
    local wish = wishes[i] and tonumber(wishes[i])
    local phase, regoaled = nil, false
    if held and string.sub(held, 1, #held_now) == held_now then
      phase = 'h'
    elseif held then
      local h = holder_of(held)
      if h.fence == fence then phase, regoaled = h.phase, h.regoaled end
    end
    if not phase then
      statuses[i] = 's'
    elseif phase == 'x' then
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
      accepted[#accepted + 1] = ref
      local due = place == 'd' and now + delay or nil
      if regoaled and trouble ~= '' then
        trouble = ''
        if place == 'p' or place == 'P' then place, due = 'd', now end
      end
      if wish and place ~= 'P' then
        due = math.min(wish, due or FAR)
        if place ~= 'g' then place = 'd' end
      end
      if place == 'g' then
        redis.call('DEL', record)
        record, trouble = nil, ''
        place = due and 'd' or 'f'
      end
      if phase == 'p' and place ~= 'P' then
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
        put(kind, 'idle', rest, ref)
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
      if record and state ~= '' and redis.call('HGET', record, 'state') ~= state then
        redis.call('HSET', record, 'state', state)
        local rev = redis.call('HINCRBY', record, 'rev', 1)
        redis.call('HSET', record, 'h' .. (rev % 8), str(now) .. ' state ' .. state)
      end
    end
    if phase then
      kind.left[#kind.left + 1] = ref
      freed[#freed + 1] = ref
      if wish then unwished[#unwished + 1] = ref end
    end
  end
  if text ~= '' and #accepted > 0 then told[#told + 1], told[#told + 2] = table.concat(accepted, '\n'), text end
end

for _, kind in ipairs(order) do
  if kind.left and #kind.left > 0 then
    for set, add in pairs(kind.add) do redis.call('ZADD', kind[set], unpack(add)) end
    redis.call('ZREM', kind.lease, unpack(kind.left))
    -- A place under a cap is free: what waited for it would else be noticed only when somebody looks by chance.
    local head = ARGV[A + 2] == '1' and redis.call('ZRANGE', kind.due, 0, 0, 'WITHSCORES')[2]
    if head and tonumber(head) <= now then soonest = math.min(soonest, tonumber(head)) end
  end
end
if #freed > 0 then redis.call('HDEL', HOLDER, unpack(freed)) end
if #unwished > 0 then redis.call('HDEL', WISH, unpack(unwished)) end
if #troubled > 0 then redis.call('HSET', TROUBLE, unpack(troubled)) end
if #untroubled > 0 then redis.call('HDEL', TROUBLE, unpack(untroubled)) end
if #told > 0 then redis.call('XADD', EVENTS, 'MAXLEN', '~', ARGV[A + 1], '*', unpack(told)) end
for c = 1, counters do redis.call('HINCRBY', COUNTERS, ARGV[A + 2 + 2 * c], ARGV[A + 3 + 2 * c]) end
for r = 1, n do
  if waited[r] and statuses[r] ~= 's' then
    redis.call('PUBLISH', string.sub(META, 1, -5) .. 'at:' .. refs[r], '1')
  end
end
if ARGV[A + 2] == '1' then wake_for(soonest) end
return answer(table.concat(statuses))
