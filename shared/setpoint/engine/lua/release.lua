-- Hand refs back that were claimed and not evaluated to their end: due at their old time, nothing charged.
-- FLAGS: allow-oom
-- KEYS: the common ones.
-- ARGV: 1 to wake, then for each (ref, fence, 1 if it was running when its child died).
-- Returns one letter a ref: o accepted, s stale, x deleted.
local statuses = {}
for i = A + 2, #ARGV, 3 do
  local ref = ARGV[i]
  local held = redis.call('HGET', HOLDER, ref)
  local h = held and holder_of(held)
  if not h or h.fence ~= ARGV[i + 1] then
    statuses[#statuses + 1] = 's'
  else
    statuses[#statuses + 1] = h.phase == 'x' and 'x' or 'o'
    local due = hand_back(kind_of(ref), ref, h, ARGV[i + 2] == '1')
    if ARGV[A + 1] == '1' then wake_for(due) end
  end
end
return answer(table.concat(statuses))
