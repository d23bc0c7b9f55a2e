-- Write an entity's goal, data and labels, and have it evaluated now. Another goal clears failures and crashes.
-- KEYS: the common ones, record.
-- ARGV: ref, goal, initial state, revision it must have ('' for any), event, 1 if data is given, data, 1 if labels are, labels.
-- Returns {code, revision, 1 if the goal changed}: s or m scheduled, w wish, p poison stays parked, c conflict.
local ref, goal, initial, revision = ARGV[A + 1], ARGV[A + 2], ARGV[A + 3], ARGV[A + 4]
local record, kind = KEYS[X + 1], kind_of(ref)
local had = redis.call('HMGET', record, 'goal', 'state', 'rev')
local at = had[3] or '0'
if revision ~= '' and revision ~= at then return answer({ 'c', at, '0' }) end
local changed = had[1] ~= goal
local fields = { 'goal', goal }
if not had[2] and initial ~= '' then
  fields[#fields + 1], fields[#fields + 2] = 'state', initial
end
if ARGV[A + 6] == '1' then
  fields[#fields + 1], fields[#fields + 2] = 'data', ARGV[A + 7]
end
if ARGV[A + 8] == '1' then
  fields[#fields + 1], fields[#fields + 2] = 'labels', ARGV[A + 9]
end
redis.call('HSET', record, unpack(fields))
local rev = redis.call('HINCRBY', record, 'rev', 1)
if changed then
  redis.call('HSET', record, 'h' .. (rev % 8), str(now) .. ' goal ' .. goal)
  local trouble = redis.call('HGET', TROUBLE, ref)
  if trouble then
    if reason_of(trouble) == 'paused' then
      put_trouble(ref, '0 0 0 0 0 0 paused|')
    elseif redis.call('ZSCORE', kind.parked, ref) then
      put_trouble(ref, '0 0 0 0 0 0 failed|')
    else
      redis.call('HDEL', TROUBLE, ref)
    end
  end
  -- What the evaluation that is running will say of its failure belongs to the old goal.
  local held = redis.call('HGET', HOLDER, ref)
  if held then
    local h = holder_of(held)
    h.regoaled = h.phase ~= 'x'
    redis.call('HSET', HOLDER, ref, holder_text(h))
  end
  event(ref, ARGV[A + 5])
end
local code = ask_for(kind, ref, now)
tell(ref)
return answer({ code, tostring(rev), changed and '1' or '0' })
