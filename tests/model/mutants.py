# ruff: noqa: E501 -- the table of mutants
"""The engine's scripts, broken on purpose: the model test must notice each. `python -m tests.model.mutants [name…]`.

A mutant is one replacement in one file, made in memory when a door loads the script. Ends with 1 if any survives.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

AT_ONCE = 2
EXAMPLES = 400
PATIENCE = 150
"""Seconds a mutant may take."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One replacement in one Lua file."""

    name: str
    file: str
    old: str
    new: str

    def applied(self, source: str) -> str:
        """The source with the replacement made; what it replaces must be there exactly once."""
        found = source.count(self.old)
        assert found == 1, f"mutant {self.name!r}: what it replaces is in {self.file}.lua {found} times"
        return source.replace(self.old, self.new)


@cache
def text_of(file: str) -> str:
    return files("setpoint.engine").joinpath("lua", f"{file}.lua").read_text(encoding="utf-8")


MUTANTS = (
    Mutant("claim: no new fence", "claim", "redis.call('GET', FENCE) or 0) + 1, now)", "redis.call('GET', FENCE) or now), 1)"),
    Mutant("claim: fence is the clock", "claim", "math.max(tonumber(redis.call('GET', FENCE) or 0) + 1, now)", "now"),
    Mutant("claim: ignores the cap", "claim", "if room > 0 and cap > 0 then", "if false then"),
    Mutant("claim: a clock stepped back stops the rate", "claim", "if tat > now + per + 1 then", "if false then"),
    Mutant("claim: ignores the rate", "claim", "if room > 0 and rate > 0 then", "if false then"),
    Mutant("claim: ignores a fleet's pause", "claim", "local fleet_paused = is_paused('fleet')", "local fleet_paused = false"),
    Mutant("claim: ignores a kind's pause", "claim", " or is_paused('kind:' .. kind.name) then room", " then room"),
    Mutant("claim: a suspect with others", "claim", "if (suspect and true or false) == alone and", "if (not alone or suspect) and"),
    Mutant("claim: stays in due", "claim", "redis.call('ZREM', kind.due, unpack(kind.gone))", ""),
    Mutant("claim: ignores the names", "claim", "and (not named or named[refs[r]]) then", "then"),
    Mutant("claim: keeps the hint", "claim", "redis.call('ZREM', HINTS, hint) == 1", "redis.call('ZSCORE', HINTS, hint)"),
    Mutant("settle: drops the wish", "settle", "if wish and place ~= 'P' then", "if false then"),
    Mutant("settle: keeps the wish", "settle", "if #unwished > 0 then", "if false then"),
    Mutant("settle: ignores the fence of what is marked", "settle", "if h.fence == fence then phase", "if true then phase"),
    Mutant("settle: ignores the fence while held", "settle", "if held and string.sub(held, 1, #held_now) == held_now then", "if held and string.find(held, ' h ', 1, true) then"),
    Mutant("settle: ignores the mark of a delete", "settle", "elseif phase == 'x' then", "elseif phase == 'X' then"),
    Mutant("settle: charges a goal that was given up", "settle", "if regoaled and trouble ~= '' then", "if false then"),
    Mutant("settle: parks for a goal that was given up", "settle", "if place == 'p' or place == 'P' then place, due = 'd', now end", ""),
    Mutant("settle: no wake for what waits for a place", "settle", "if head and tonumber(head) <= now then soonest = math.min(soonest, tonumber(head)) end", ""),
    Mutant("set: marks nothing that runs", "set", "redis.call('HSET', HOLDER, ref, holder_text(h))", ""),
    Mutant("settle: ignores the mark of a pause", "settle", "if phase == 'p' and place ~= 'P' then", "if false then"),
    Mutant("settle: parks what is wished for", "settle", "if place ~= 'g' then place = 'd' end", "if place ~= 'g' and place ~= 'p' then place = 'd' end"),
    Mutant("settle: keeps old trouble", "settle", "if #untroubled > 0 then", "if false then"),
    Mutant("settle: no wake", "settle", "if ARGV[A + 2] == '1' then wake_for(soonest) end", ""),
    Mutant("settle: writes no state", "settle", "redis.call('HSET', record, 'state', state)", ""),
    Mutant("settle: what is gone keeps its record", "settle", "redis.call('DEL', record)", ""),
    Mutant("settle: parks poison with its wish", "settle", "if wish then unwished[#unwished + 1] = ref end", "if wish and place ~= 'P' then unwished[#unwished + 1] = ref end"),
    Mutant("reap: no wake", "reap", "    wake_for(due)\n", ""),
    Mutant("release: no wake", "release", "if ARGV[A + 1] == '1' then wake_for(due) end", ""),
    Mutant("reap: charges a crash", "prelude", "'^(%d+ %d+ %d+ %d+ %d+) (%d+) '", "'^(%d+) (%d+) '"),
    Mutant("reap: does not mark", "reap", "hand_back(kind, ref, h, true)", "hand_back(kind, ref, h, false)"),
    Mutant("reap: parks", "reap", "    wake_for(due)\n", "    redis.call('ZADD', kind.parked, str(now), ref)\n    redis.call('ZREM', kind.due, ref)\n"),
    Mutant("reap: does not hold off", "reap", "if now >= held and now - held < wait then", "if false then"),
    Mutant("reap: holds off for ever", "reap", "and math.abs(now - held) > lease then", "then"),
    Mutant("reap: takes living leases", "reap", "redis.call('ZRANGEBYSCORE', kind.lease, '-inf', str(now),", "redis.call('ZRANGEBYSCORE', kind.lease, '-inf', '+inf',"),
    Mutant("delete: no mark", "delete", "h.phase = 'x'", "h.phase = h.phase"),
    Mutant("delete: leaves the wish", "delete", "redis.call('HDEL', WISH, ref)", "redis.call('HEXISTS', WISH, ref)"),
    Mutant("delete: leaves the record", "delete", "redis.call('DEL', KEYS[X + i])", "redis.call('EXISTS', KEYS[X + i])"),
    Mutant("delete: leaves the trouble", "delete", "redis.call('HDEL', TROUBLE, ref)", ""),
    Mutant("delete: leaves the pause", "delete", "redis.call('HDEL', PAUSED, 'ref:' .. ref)", ""),
    Mutant("enqueue: stays parked", "prelude", "    redis.call('ZREM', kind.parked, ref)\n    if trouble then", "    if trouble then"),
    Mutant("enqueue: the later time", "enqueue", "if had and had <= want then", "if had and had >= want then"),
    Mutant("enqueue: puts off a resync", "prelude", "if look then due", "if false then due"),
    Mutant("enqueue: frees poison", "prelude", "if reason == 'poison' then return", "if false then return"),
    Mutant("enqueue: the later wish", "prelude", "if had and tonumber(had) <= due then return tonumber(had) end\n  redis.call('HSET', WISH", "if had and tonumber(had) >= due then return tonumber(had) end\n  redis.call('HSET', WISH"),
    Mutant("wake: only of the quick enqueue", "prelude", "if due <= now + HORIZON and redis.call('LLEN', WAKE) == 0 then", "if order[1] and #ARGV - A == 3 and due <= now + HORIZON and redis.call('LLEN', WAKE) == 0 then"),
    Mutant("wake: without end", "prelude", "and redis.call('LLEN', WAKE) == 0 then", "then redis.call('RPUSH', WAKE, '1')"),
    Mutant("repeat: done again", "prelude", "if number == ARGV[1] then", "if false then"),
    Mutant("repeat: outdated is done again", "prelude", "if tonumber(ARGV[1]) < tonumber(number) then", "if false then"),
    Mutant("release: loses the old due time", "prelude", "math.min(tonumber(wish), h.due) or h.due", "math.min(tonumber(wish), h.due) or now"),
    Mutant("release: drops the wish", "prelude", "local due = wish and math.min(tonumber(wish), h.due) or h.due", "local due = h.due"),
    Mutant("release: does not mark", "release", "ARGV[i + 2] == '1')", "false)"),
    Mutant("release: ignores the fence", "release", "if not h or h.fence ~= ARGV[i + 1] then", "if not h then"),
    Mutant("settle: frees a re-created ref that is paused", "settle", "if redis.call('HEXISTS', PAUSED, 'ref:' .. ref) == 1 then", "if false then"),
    Mutant("release: frees a re-created ref that is paused", "prelude", "if h.phase == 'x' and redis.call('HEXISTS', PAUSED, 'ref:' .. ref) == 1 then", "if false then"),
    Mutant("enqueue: frees what failed and is paused", "prelude", "    if redis.call('HEXISTS', PAUSED, 'ref:' .. ref) == 1 then\n      -- Failed", "    if false then\n      -- Failed"),
    Mutant("audit: does not cut", "audit", "elseif expiry and tonumber(expiry) > now + 2 * lease then", "elseif false then"),
    Mutant("park: drops the due time", "park", "if due then redis.call('HSET', WISH, ref, due) end", ""),
    Mutant("park: overrides poison", "park", "if not redis.call('ZSCORE', kind.parked, ref) then", "if true then"),
    Mutant("revive: forgets the wish", "revive", "tonumber(redis.call('HGET', WISH, ref) or now)", "now"),
    Mutant("revive: no wake", "revive", "wake_for(due)\n", "\n"),
    Mutant("revive: keeps the wish", "revive", "redis.call('HDEL', WISH, ref)\n", "\n"),
    Mutant("revive: clears unasked", "revive", "if ARGV[A + 2] == '1' then", "if true then"),
    Mutant("set: does not clear failures", "set", "  if trouble then\n", "  if false then\n"),
    Mutant("set: always clears failures", "set", "local changed = had[1] ~= goal", "local changed = true"),
    Mutant("set: ignores the revision", "set", "if revision ~= '' and revision ~= at then", "if false then"),
    Mutant("promote: ignores room", "promote", "if out < room then", "if true then"),
    Mutant("promote: includes what is paused", "promote", "if not is_paused('kind:' .. kind.name) then", "if true then"),
    Mutant("promote: notes no hint", "promote", "redis.call('ZADD', HINTS, str(now), hint)", ""),
    Mutant("beat: extends a stale lease", "beat", "if not h or h.fence ~= ARGV[A + 3 + 2 * i] then", "if not h then"),
    Mutant("beat: extends nothing", "beat", "redis.call('ZADD', kind.lease, 'XX', unpack(add))", "redis.call('EXISTS', META)"),
    Mutant("unschedule: keeps the wish", "unschedule", "redis.call('HDEL', WISH, ref)", "redis.call('HEXISTS', WISH, ref)"),
    Mutant("unschedule: leaves trouble behind", "unschedule", "redis.call('HDEL', TROUBLE, ref)", ""),
    Mutant("reschedule: never later", "reschedule", "redis.call('ZADD', kind.due, str(due), ref)", "redis.call('ZADD', kind.due, 'LT', str(due), ref)"),
    Mutant("look: keeps in idle", "look", "redis.call('ZREM', kind.idle, unpack(refs))", ""),
    Mutant("look: no wake", "look", "wake_for(now)", ""),
    Mutant("unhint: no wake", "unhint", "if gone > 0 then wake_for(now) end", ""),
    Mutant("claim: no wake for what is left", "claim", "== 1 and more then wake_for(now) end", "== 1 and more then end"),
    Mutant("set: no wake, not due", "set", "local code = ask_for(kind, ref, now)", "local code = 's'"),
    Mutant("resume: no wake", "resume", "wake_for(now)", ""),
)  # fmt: skip


def main(names: list[str]) -> int:
    """Run the mutants, all or those named, and print how each fared."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    started = time.monotonic()
    assert _run("")[0] == "survived", "the model test fails without any mutant"
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(_report, chosen))
    survivors = [mutant.name for mutant, killed in zip(chosen, results, strict=True) if not killed]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed in {time.monotonic() - started:.0f} s")
    if survivors:
        print("survived:", *survivors, sep="\n  ")
    return 1 if survivors else 0


def _report(mutant: Mutant) -> bool:
    result, seconds, why = _run(mutant.name)
    print(f"{mutant.name:<40} {result:<9} {seconds:6.1f} s  {why}", flush=True)
    return result == "killed"


def _run(name: str) -> tuple[str, float, str]:
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.model.mutants", "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return "timed out", time.monotonic() - started, ""
    result = {0: "survived", 3: "killed"}.get(done.returncode, "broken")
    why = (done.stdout if result == "killed" else done.stderr[-2000:] if result == "broken" else "").strip()
    return result, time.monotonic() - started, why


def _one(name: str) -> int:
    """In a process of its own: 3 if the model test notices the mutant, 0 if not."""
    from setpoint.embedded import find_binary
    from tests.model import test_engine_model as model_test
    from tests.servers import Server

    mutants = [mutant for mutant in MUTANTS if mutant.name == name]
    server = Server(find_binary())
    server.start()
    try:
        with model_test.scripts_with(model_test.CLOCK, *mutants):
            examples = EXAMPLES if mutants else 20
            model_test.explore(server.url, examples=examples, steps=50, fixed=True, shrink=False)
    except AssertionError as noticed:  # anything else, as a script that Redis refuses, is no fair kill
        print((str(noticed).splitlines() or ["an assertion"])[0][:90])
        return 3
    finally:
        server.destroy()
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        sys.exit(_one(sys.argv[2]))
    sys.exit(main(sys.argv[1:]))
