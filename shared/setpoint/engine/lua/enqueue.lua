-- Have refs evaluated no later than a time: the earliest of all wishes wins. Never alters a goal.
-- KEYS: the common ones.
-- ARGV: (ref, 'a' or 'r', us) for each.
-- Returns (code, due) for each: s scheduled, m was due by then, w wish of a leased or paused ref, p poison stays parked.
-- Repeating it changes nothing, so it carries no operation number.
local n = (#ARGV - A) / 3
local by_kind, reply = {}, {}
for i = 1, n do
  local ref = ARGV[A + 3 * i - 2]
  local kind = kind_of(ref)
  local group = by_kind[kind]
  if not group then
    group = { refs = {}, at = {}, dues = {} }
    by_kind[kind] = group
  end
  group.refs[#group.refs + 1] = ref
  group.at[#group.at + 1] = i
  group.dues[#group.dues + 1] = due_time(ARGV[A + 3 * i - 1], ARGV[A + 3 * i])
end
-- The quick way is for refs that are nowhere, or due; the rest go one by one.
for _, kind in ipairs(order) do
  local group = by_kind[kind]
  local lease = redis.call('ZMSCORE', kind.lease, unpack(group.refs))
  local idle = redis.call('ZMSCORE', kind.idle, unpack(group.refs))
  local parked = redis.call('ZMSCORE', kind.parked, unpack(group.refs))
  local due = redis.call('ZMSCORE', kind.due, unpack(group.refs))
  local add, seen, soonest = {}, {}, FAR
  for j, ref in ipairs(group.refs) do
    local at, want = group.at[j], group.dues[j]
    if lease[j] or idle[j] or parked[j] then
      local code, then_due = ask_for(kind, ref, want)
      reply[2 * at - 1], reply[2 * at] = code, str(then_due)
    else
      local had = seen[ref] or (due[j] and tonumber(due[j]))
      if had and had <= want then
        reply[2 * at - 1], reply[2 * at] = 'm', str(had)
      else
        add[#add + 1], add[#add + 2] = str(want), ref
        seen[ref], soonest = want, math.min(soonest, want)
        reply[2 * at - 1], reply[2 * at] = 's', str(want)
      end
    end
  end
  if #add > 0 then
    redis.call('ZADD', kind.due, unpack(add))
    wake_for(soonest)
  end
end
return reply
