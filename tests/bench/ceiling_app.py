"""The practical ceiling: as little as can claim, run and acknowledge work kept in sorted sets, with a state an item.

One call takes 128 due ids and their states (JSON, some 230 bytes) under a lease, one acknowledges them and writes the
states back. No fences, wishes, events, timeouts, child process: what is missing is what setpoint is for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

import redis

from tests.bench.log import note

BATCH = 128
DUE, LEASED, STATES = "ceiling:due", "ceiling:leased", "ceiling:states"

CLAIM = """
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #ids == 0 then return { ids, redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES') } end
local add = {}
for i, id in ipairs(ids) do add[2 * i - 1], add[2 * i] = ARGV[3], id end
redis.call('ZADD', KEYS[2], unpack(add))
redis.call('ZREM', KEYS[1], unpack(ids))
return { ids, redis.call('HMGET', KEYS[3], unpack(ids)) }
"""

ACKNOWLEDGE = """
local n = tonumber(ARGV[2])
local ids, states, again = {}, {}, {}
for i = 1, n do
  ids[i], states[2 * i - 1], states[2 * i] = ARGV[1 + 2 * i], ARGV[1 + 2 * i], ARGV[2 + 2 * i]
  again[2 * i - 1], again[2 * i] = ARGV[1], ARGV[1 + 2 * i]
end
redis.call('ZREM', KEYS[2], unpack(ids))
redis.call('HSET', KEYS[3], unpack(states))
if ARGV[1] ~= '' then redis.call('ZADD', KEYS[1], unpack(again)) end
return n
"""


def fill(url: str, job: str, dues: Sequence[float]) -> None:
    """Put work in."""
    client = redis.Redis.from_url(url)
    spec = {"actions": ["check", "apply", "verify"], "owner": "team-a", "most": 60, "goal": "serving"}
    state = {"job": job, "attempts": 0, "phase": "pending", "spec": spec, "labels": {"region": "eu-1", "tier": "web"}}
    for at in range(0, len(dues), 2000):
        part = range(at, min(at + 2000, len(dues)))
        pipeline = client.pipeline(transaction=False)
        pipeline.zadd(DUE, {f"{job}/{i}": dues[i] for i in part})
        pipeline.hset(STATES, mapping={f"{job}/{i}": json.dumps({**state, "due": dues[i]}) for i in part})
        pipeline.execute()
    client.close()


def main() -> None:
    client = redis.Redis.from_url(os.environ["BENCH_URL"])
    claim, acknowledge = client.register_script(CLAIM), client.register_script(ACKNOWLEDGE)
    keys = [DUE, LEASED, STATES]
    jobs = {"noop": lambda _due: note(), "late": note, "loop": lambda _due: note()}
    while True:
        now = time.time()
        ids, states = claim(keys, [now, BATCH, now + 30])
        if not ids:
            time.sleep(min(max(float(states[1]) - time.time(), 0.0), 0.001) if states else 0.001)
            continue
        args: list[object] = [now if ids[0].startswith(b"loop") else "", len(ids)]
        for ref, stored in zip(ids, states, strict=True):
            state = json.loads(stored)
            jobs[state["job"]](state["due"])
            state["attempts"] += 1
            args += (ref, json.dumps(state))
        acknowledge(keys, args)


if __name__ == "__main__":
    main()
