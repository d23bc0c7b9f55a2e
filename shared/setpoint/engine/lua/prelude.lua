-- Stands before every script: names for the keys and arguments that all have, Redis' time, and answers for repeats.
-- KEYS: meta, op, holder, wish, trouble, wake, fence, events, counters, waiters, paused, then due, lease, idle, parked of
--   each kind, then the script's own (from X + 1).
-- ARGV: operation number ('' for none), number of kinds, their names, then the script's own (from A + 1).
local META, OP, HOLDER, WISH, TROUBLE, WAKE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local FENCE, EVENTS, COUNTERS, WAITERS, PAUSED = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local FAR, HORIZON = 9007199254740992, 1000000
local kinds, order = {}, {}
local A, X = 2 + tonumber(ARGV[2]), 11 + 4 * tonumber(ARGV[2])
for i = 1, tonumber(ARGV[2]) do
  local b = 11 + 4 * (i - 1)
  local kind = { name = ARGV[2 + i], due = KEYS[b + 1], lease = KEYS[b + 2], idle = KEYS[b + 3], parked = KEYS[b + 4] }
  kinds[kind.name], order[i] = kind, kind
end

if ARGV[1] ~= '' then
  local seen = redis.call('GET', OP)
  if seen then
    local number, reply = string.match(seen, '^(%d+) (.*)$')
    if number == ARGV[1] then return cmsgpack.unpack(reply) end
    -- A copy that a dead connection still delivers, after its caller has gone on: doing it again would do it twice.
    if tonumber(ARGV[1]) < tonumber(number) then return redis.error_reply('OUTDATED the caller has gone on') end
  end
end

local function answer(reply)
  if ARGV[1] ~= '' then redis.call('SET', OP, ARGV[1] .. ' ' .. cmsgpack.pack(reply), 'EX', 60) end
  return reply
end

local function str(us) return string.format('%.0f', us) end

local skew = tonumber(redis.call('HGET', META, 'skew') or 0)
local function redis_now()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2] + skew
end
local now = redis_now()

local function kind_of(ref) return kinds[string.match(ref, '^([^/]*)/')] end

local function due_time(mode, us)
  if mode == 'r' then return now + tonumber(us) end
  return tonumber(us)
end

-- One pending wake-up is enough; a promoter looks by itself within HORIZON for what is due later.
local function wake_for(due)
  if due <= now + HORIZON and redis.call('LLEN', WAKE) == 0 then redis.call('RPUSH', WAKE, '1') end
end

-- Phase: h held, p to be parked when it ends, x deleted; a g after it says that its goal is another since the claim.
local function holder_of(held)
  local fence, phase, g, due, since, worker = string.match(held, '^(%d+) (%a)(g?) (%-?%d+) (%d+) (.*)$')
  return { fence = fence, phase = phase, regoaled = g == 'g', due = tonumber(due), since = since, worker = worker }
end

local function holder_text(h)
  local phase = h.phase .. (h.regoaled and 'g' or '')
  return h.fence .. ' ' .. phase .. ' ' .. str(h.due) .. ' ' .. h.since .. ' ' .. h.worker
end

-- Earliest wish wins; a wish is a due time asked for while the ref is leased or paused.
local function wish_for(ref, due)
  local had = redis.call('HGET', WISH, ref)
  if had and tonumber(had) <= due then return tonumber(had) end
  redis.call('HSET', WISH, ref, str(due))
  return due
end

local function reason_of(trouble) return trouble and string.match(trouble, '^%d+ %d+ %d+ %d+ %d+ %d+ (%S+)|') end

local function with_reason(trouble, reason)
  if not trouble or trouble == '' then return '0 0 0 0 0 0 ' .. reason .. '|' end
  return (string.gsub(trouble, '^(%d+ %d+ %d+ %d+ %d+ %d+) %S+|', '%1 ' .. reason .. '|'))
end

local function put_trouble(ref, trouble)
  if not trouble or trouble == '' or trouble == '0 0 0 0 0 0 -|' then
    redis.call('HDEL', TROUBLE, ref)
  else
    redis.call('HSET', TROUBLE, ref, trouble)
  end
end

local function event(ref, text)
  if text ~= '' then redis.call('XADD', EVENTS, 'MAXLEN', '~', '10000', '*', ref, text) end
end

local function tell(ref)
  if redis.call('HLEN', WAITERS) > 0 and redis.call('HEXISTS', WAITERS, ref) == 1 then
    redis.call('PUBLISH', string.sub(META, 1, -5) .. 'at:' .. ref, '1')
  end
end

-- Ends a lease without an outcome: back to due at its old time, or where a wish, a delete or a pause says.
local function hand_back(kind, ref, h, suspect)
  local wish = redis.call('HGET', WISH, ref)
  local due = wish and math.min(tonumber(wish), h.due) or h.due
  if h.phase == 'x' and redis.call('HEXISTS', PAUSED, 'ref:' .. ref) == 1 then
    -- Paused after the delete: what is re-created waits, and keeps its wish.
    redis.call('ZADD', kind.parked, str(now), ref)
    put_trouble(ref, with_reason('', 'paused'))
  elseif h.phase == 'x' then
    if wish then
      redis.call('ZADD', kind.due, wish, ref)
      wake_for(tonumber(wish))
    end
    redis.call('HDEL', WISH, ref)
  else
    local trouble = redis.call('HGET', TROUBLE, ref)
    if suspect then
      trouble = with_reason(trouble or '', reason_of(trouble) or '-')
      trouble = string.gsub(trouble, '^(%d+ %d+ %d+ %d+ %d+) (%d+) ', function(head, n)
        return head .. ' ' .. str(tonumber(n) + 1) .. ' '
      end)
    end
    if h.phase == 'p' then
      redis.call('ZADD', kind.parked, str(now), ref)
      redis.call('HSET', WISH, ref, str(due))
      put_trouble(ref, with_reason(trouble, 'paused'))
    else
      redis.call('ZADD', kind.due, str(due), ref)
      redis.call('HDEL', WISH, ref)
      if suspect then put_trouble(ref, trouble) end
    end
  end
  redis.call('ZREM', kind.lease, ref)
  redis.call('HDEL', HOLDER, ref)
  return due
end

-- Asks for an evaluation no later than `due`; what every enqueue comes down to. Replies outcome code and due time.
local function ask_for(kind, ref, due)
  if redis.call('ZSCORE', kind.lease, ref) then return 'w', wish_for(ref, due) end
  local parked = redis.call('ZSCORE', kind.parked, ref)
  if parked then
    local trouble = redis.call('HGET', TROUBLE, ref)
    local reason = reason_of(trouble)
    if reason == 'paused' then return 'w', wish_for(ref, due) end
    if reason == 'poison' then return 'p', tonumber(parked) end
    if redis.call('HEXISTS', PAUSED, 'ref:' .. ref) == 1 then
      -- Failed, then paused: no longer failed, but paused still.
      put_trouble(ref, with_reason(trouble, 'paused'))
      return 'w', wish_for(ref, due)
    end
    redis.call('ZADD', kind.due, str(due), ref)
    redis.call('ZREM', kind.parked, ref)
    if trouble then put_trouble(ref, with_reason(trouble, '-')) end
    wake_for(due)
    return 's', due
  end
  local had = redis.call('ZSCORE', kind.due, ref)
  if had and tonumber(had) <= due then return 'm', tonumber(had) end
  -- At rest it is looked at anyway at some time (resync): being asked for must not put that off.
  local look = not had and redis.call('ZSCORE', kind.idle, ref)
  if look then due = math.min(due, tonumber(look)) end
  redis.call('ZADD', kind.due, str(due), ref)
  if not had then redis.call('ZREM', kind.idle, ref) end
  wake_for(due)
  return 's', due
end

-- Whether one of the fields of `paused` holds now. Value: "until text", until 0 for no end.
local function is_paused(field)
  local value = redis.call('HGET', PAUSED, field)
  if not value then return false end
  local til = tonumber(string.match(value, '^(%d+)'))
  return til == 0 or til > now
end
