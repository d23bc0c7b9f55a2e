"""The scripts through the door, one scenario each: what the model test (`tests/model`) does not reach."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from setpoint.engine.door import AsyncDoor, Door, load_script, skewed
from setpoint.engine.records import Trouble
from setpoint.engine.scripts import BATCH, Claim, ClaimKind, Ending, Released, Scripts, Settlement, When
from setpoint.errors import RedisFull, RedisUnavailable
from tests.conftest import NewServer
from tests.servers import SentinelSetup, Server, TlsServer

S = 1_000_000
KIND = ClaimKind("job", "default")

LUA = {path.name.removesuffix(".lua"): path for path in files("setpoint.engine").joinpath("lua").iterdir()}
SCRIPTS = sorted(set(LUA) - {"prelude"})


@pytest.fixture
def door(url: str, namespace: str) -> Iterator[Door]:
    with Door(url, namespace, role="test") as door:
        yield door


def enqueue(door: Door, *refs: str, us: int = 0) -> None:
    door.run(door.scripts.enqueue([(ref, When.after(us)) for ref in refs]))


def claim(door: Door, limit: int = 256, *, kind: ClaimKind = KIND, **options: Any) -> Claim:
    call = door.scripts.claim(
        "w", [kind], lane=kind.lane, **{"lease_us": 30 * S, "lead_us": 0, "limit": limit, **options}
    )
    return door.run(call)


def refs_of(claimed: Claim) -> list[str]:
    return [item.ref for item in claimed.items]


# ------------------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("name", SCRIPTS)
def test_header_says_what_goes_in_and_out(name: str) -> None:
    header = []
    for line in LUA[name].read_text(encoding="utf-8").splitlines():
        if not line.startswith("--"):
            break
        header.append(line.removeprefix("--").strip())
    starts = [line.split(" ")[0].rstrip(":") for line in header]
    assert [word for word in starts if word in ("KEYS", "ARGV", "Returns")] == ["KEYS", "ARGV", "Returns"]
    assert header[0].endswith((".", ",", ":")) or len(header[0]) > 60, "first, a sentence on what it is for"
    flags = [line for line in header if line.startswith("FLAGS")]
    assert flags in ([], ["FLAGS: allow-oom"])
    may_fail_when_full = {"enqueue", "set", "reschedule"}
    assert (name in may_fail_when_full) == (not flags)


def test_each_script_is_one_method() -> None:
    methods = {name for name, value in vars(Scripts).items() if callable(value) and not name.startswith("_")}
    assert methods == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_names_no_key_itself(name: str) -> None:
    """Keys come as KEYS only; the one channel name is made from one of them."""
    calls = re.findall(r"redis\.call\('(\w+)', *([^,)]+)", load_script(name).text)
    literal = [(command, first) for command, first in calls if first.startswith(("'", '"'))]
    assert not literal


# ---------------------------------------------------------------------------------------------------------- rate limit


def test_rate_limit_spreads_starts(door: Door) -> None:
    limited = ClaimKind("job", "default", rate=5, per_us=10 * S)
    enqueue(door, *(f"job/{i}" for i in range(40)))
    now = door.now_us()
    started = []
    for tenth in range(300):
        with skewed(door, tenth * S // 10):
            started += [tenth / 10] * len(claim(door, 3, kind=limited).items)
    assert started[:5] == [0, 0, 0, 0.1, 0.1], "a burst of five, three a call"
    for i in range(len(started) - 5):
        assert started[i + 5] - started[i] >= 1.9, "then one every two seconds"
    assert len(started) in (5 + 14, 5 + 15)
    assert door.now_us() - now < 20 * S


def test_rate_limit_is_remembered_as_long_as_it_holds(door: Door) -> None:
    """Starts one by one: the key must outlive what it says, not the last interval alone."""
    limited = ClaimKind("job", "default", rate=10, per_us=3600 * S)
    enqueue(door, *(f"job/{i}" for i in range(20)))
    for _ in range(10):
        assert len(claim(door, 1, kind=limited).items) == 1
    assert claim(door, 1, kind=limited).items == ()
    (left,) = door.read(("PTTL", door.keys.limit("job")))
    assert left > 3590 * 1000


def test_rate_limit_survives_a_clock_that_steps_back(door: Door) -> None:
    limited = ClaimKind("job", "default", rate=2, per_us=10 * S)
    enqueue(door, *(f"job/{i}" for i in range(9)), us=-(10**12))
    with skewed(door, 3600 * S):
        assert len(claim(door, kind=limited).items) == 2
    assert claim(door, kind=limited).items == (), "not before one interval has passed"
    with skewed(door, 11 * S):
        assert len(claim(door, kind=limited).items) == 2


# ------------------------------------------------------------------------------------------------------------ suspects


def test_suspects_beyond_a_page_hold_up_no_others(door: Door) -> None:
    """600 suspects are due before one other ref: it is found all the same, and they go one by one."""
    suspects = [f"job/s{i:03}" for i in range(600)]
    for i in range(0, 600, BATCH):
        enqueue(door, *suspects[i : i + BATCH], us=-S)
    while (taken := claim(door)).items:
        items = [Released(item.ref, taken.fence, suspect=True) for item in taken.items]
        assert set(door.run(door.scripts.release(items))) == {"ok"}
    enqueue(door, "job/innocent")
    taken = claim(door, 3)
    assert refs_of(taken) == ["job/innocent"]
    assert taken.suspects
    for _ in range(3):
        alone = claim(door, 100, alone=True)
        assert len(alone.items) == 1
        assert Trouble.unpack(alone.items[0].trouble).suspect == 1


def test_one_suspect_is_found_behind_many_others(door: Door) -> None:
    enqueue(door, "job/suspect", us=-S)
    taken = claim(door)
    door.run(door.scripts.release([Released("job/suspect", taken.fence, suspect=True)]))
    for i in range(2):
        enqueue(door, *(f"job/{i}-{n}" for n in range(250)), us=-3 * S)
    assert refs_of(claim(door, 1, alone=True)) == ["job/suspect"]


# -------------------------------------------------------------------------------------------- the server has forgotten


def test_scripts_are_loaded_again_after_a_flush(door: Door) -> None:
    for i in range(5):
        enqueue(door, f"job/{i}")
        door.read(("SCRIPT", "FLUSH"))
        taken = claim(door)
        assert refs_of(taken) == [f"job/{i}"]
        door.read(("SCRIPT", "FLUSH"))
        assert door.run(door.scripts.settle([Settlement((f"job/{i}",), taken.fence, Ending("forget"))])) == ("ok",)


def test_an_outdated_copy_of_a_call_is_refused(door: Door) -> None:
    """A command that a dead connection delivers late must not be done a second time."""
    claim(door)  # loads the script
    enqueue(door, "job/1", us=-S)
    call = door.scripts.claim("w", [KIND], lane="default", lease_us=S, lead_us=0, limit=1)
    command = door.command(call, load_script("claim"))
    door.run(door.scripts.pause("kind:other", text="goes on"))
    with pytest.raises(Exception, match="OUTDATED"):
        door.read(command)
    assert door.read(("HLEN", door.keys.holder)) == [0]


# ------------------------------------------------------------------------------------------------------- out of memory


def test_out_of_memory(new_server: NewServer, namespace: str) -> None:
    server = new_server()
    with Door(server.url, namespace, role="test") as door, server.client() as client:
        run, scripts = door.run, door.scripts
        enqueue(door, "job/1", "job/2", "job/3")
        run(scripts.set("job/4", "up"))
        before = claim(door, 1)
        client.script_flush()
        client.config_set("maxmemory", 1)

        def written() -> dict[str, bytes]:
            with server.client(decode_responses=False) as raw:
                return {key: raw.dump(key) for key in raw.scan_iter()}

        full = written()
        for call in (
            scripts.enqueue([("job/9", When.after(0)), ("job/1", When.after(0))]),
            scripts.set("job/4", "down"),
            scripts.set("job/9", "down"),
            scripts.reschedule("job/2", When.after(0)),
        ):
            with pytest.raises(RedisFull):
                run(call)
        assert written() == full, "nothing was written"

        (first,) = refs_of(before)
        assert run(scripts.beat("w", [(first, before.fence)], lease_us=30 * S, ttl_us=S)).lost == ()
        run(scripts.register("w", born_us=1, ttl_us=S, info=b"", kinds={"job": b"p"}))
        taken = claim(door)
        assert len(taken.items) == 3
        rest = refs_of(taken)
        assert run(scripts.settle([Settlement((first,), before.fence, Ending("due", 60 * S, Trouble(1).pack()))])) == (
            "ok",
        )
        assert run(scripts.release([Released(rest[0], taken.fence, suspect=True)])) == ("ok",)
        reap = scripts.reap(["job"], gap_us=10**17, wait_us=0, lease_us=30 * S)
        client.config_set("maxmemory", 0)
        with skewed(door, 40 * S):
            client.config_set("maxmemory", 1)
            assert set(run(reap).refs) == set(rest[1:])
        assert run(scripts.delete([first])) == ("deleted",)
        assert run(scripts.unschedule(rest[0], keep=False))
        assert run(scripts.pause("fleet", text="full"))
        assert run(scripts.resume("fleet"))


# --------------------------------------------------------------------------------------------------------- lost replies


class DroppingProxy:
    """Hands bytes on to a Unix socket; when armed, it swallows the next reply and ends the connection."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._drop = threading.Event()
        self.dropped = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self) -> None:
        self._drop.set()

    def close(self) -> None:
        for each in [self._listener, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._target))
                self._open += [client, server]
                threading.Thread(target=self._copy, args=(client, server, lambda: False), daemon=True).start()
                threading.Thread(target=self._copy, args=(server, client, self._swallows), daemon=True).start()

    def _swallows(self) -> bool:
        if not self._drop.is_set():
            return False
        self._drop.clear()
        self.dropped += 1
        return True

    def _copy(self, source: socket.socket, target: socket.socket, swallows: Callable[[], bool]) -> None:
        with suppress(OSError):
            while (data := source.recv(65536)) and not swallows():
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def dropping(redis_server: Server, url: str) -> Iterator[DroppingProxy]:
    proxy = DroppingProxy(redis_server.socket)
    yield proxy
    proxy.close()


def test_a_call_whose_reply_was_lost_is_answered_and_not_repeated(dropping: DroppingProxy, namespace: str) -> None:
    with Door(f"redis://127.0.0.1:{dropping.port}/0", namespace, role="test") as door:
        enqueue(door, "job/1", "job/2", "job/3")
        claim(door, 1, kind=ClaimKind("other", "default"))  # loads the script
        dropping.arm()
        taken = claim(door, 1)
        assert dropping.dropped == 1
        assert len(taken.items) == 1
        assert door.read(("HLEN", door.keys.holder), ("GET", door.keys.fence)) == [1, str(taken.fence).encode()]

        (ref,) = refs_of(taken)
        door.run(door.scripts.settle([]))
        dropping.arm()
        done = [Settlement((ref,), taken.fence, Ending("due", 60 * S, event=b"done"))]
        assert door.run(door.scripts.settle(done, counters={"settled": 1})) == ("ok",), "its own doing is not stale"
        assert dropping.dropped == 2
        assert door.read(("HGET", door.keys.counters, "settled"), ("XLEN", door.keys.events)) == [b"1", 1]


def test_the_same_on_an_event_loop(dropping: DroppingProxy, namespace: str) -> None:
    async def scenario() -> None:
        async with AsyncDoor(f"redis://127.0.0.1:{dropping.port}/0", namespace, role="test") as door:
            await door.run(door.scripts.set("job/1", "up"))
            dropping.arm()
            assert (await door.run(door.scripts.set("job/1", "down"))).revision == 2
            assert (await door.run(door.scripts.set("job/1", "down"))).revision == 3

    asyncio.run(scenario())
    assert dropping.dropped == 1


def test_gives_up_when_nobody_answers(tmp_path: Path, namespace: str) -> None:
    door = Door(f"unix://{tmp_path}/nobody.sock?db=0", namespace, role="test", patience=0.1)
    with door, pytest.raises(RedisUnavailable, match="does not answer"):
        claim(door)


# ------------------------------------------------------------------------------------------------ kinds of deployments


def _whole_life(url: str, namespace: str) -> None:
    with Door(url, namespace, role="test") as door:
        enqueue(door, "job/1", "other/1")
        door.run(door.scripts.set("job/2", "up", data=b"\xff"))
        kinds = [KIND, ClaimKind("other", "default", cap=1, rate=5, per_us=S)]
        call = door.scripts.claim("w", kinds, lane="default", lease_us=30 * S, lead_us=0, limit=9, hint="h")
        taken = door.run(call)
        assert set(refs_of(taken)) == {"job/1", "job/2", "other/1"}
        assert door.run(door.scripts.delete(["other/1"])) == ("cancelling",)
        done = [Settlement(("job/1", "job/2", "other/1"), taken.fence, Ending("idle", S, state="up"))]
        assert door.run(door.scripts.settle(done)) == ("ok", "ok", "deleted")
        assert door.read(("HGET", door.keys.record("job/2"), "state")) == [b"up"]


async def _whole_life_async(url: str, namespace: str) -> None:
    async with AsyncDoor(url, namespace, role="test") as door:
        await door.run(door.scripts.set("job/async", "up"))
        call = door.scripts.claim("w", [KIND], lane="default", lease_us=S, lead_us=0, limit=9)
        assert refs_of(await door.run(call)) == ["job/async"]


def _both(url: str, namespace: str) -> None:
    _whole_life(url, namespace)
    asyncio.run(_whole_life_async(url, namespace))


def test_over_a_unix_socket(url: str, namespace: str) -> None:
    _both(url, namespace)


def test_over_tcp(tcp_url: str, namespace: str) -> None:
    _both(tcp_url, namespace)


def test_over_tls(tls_server: TlsServer, namespace: str) -> None:
    _both(tls_server.url, namespace)


def test_through_sentinel(sentinel_setup: SentinelSetup, namespace: str) -> None:
    _both(sentinel_setup.url, namespace)


def test_on_a_cluster_of_one_node(cluster_server: Server, namespace: str) -> None:
    """All keys share a slot, so a Cluster takes the scripts as they are."""
    _both(cluster_server.tcp_url, namespace)


# ---------------------------------------------------------------------------------------------------- pauses of a ref


def test_what_failed_and_is_paused_stays_paused_when_asked_for(door: Door) -> None:
    enqueue(door, "job/1")
    taken = claim(door)
    door.run(door.scripts.settle([Settlement(("job/1",), taken.fence, Ending("failed", trouble=Trouble(3).pack()))]))
    assert door.run(door.scripts.park("job/1", text="me")) == "parked"
    enqueue(door, "job/1")
    assert claim(door).items == ()
    assert door.run(door.scripts.revive("job/1", clear=False)).outcome == "scheduled"
    assert refs_of(claim(door)) == ["job/1"]


@pytest.mark.parametrize("ended_by", ["settle", "release"])
def test_a_re_created_ref_that_is_paused_meanwhile_waits(door: Door, ended_by: str) -> None:
    enqueue(door, "job/1")
    taken = claim(door)
    door.run(door.scripts.delete(["job/1"]))
    enqueue(door, "job/1")
    assert door.run(door.scripts.park("job/1", text="me")) == "parking"
    if ended_by == "settle":
        ended = door.run(door.scripts.settle([Settlement(("job/1",), taken.fence, Ending("idle"))]))
    else:
        ended = door.run(door.scripts.release([Released("job/1", taken.fence)]))
    assert ended == ("deleted",)
    assert claim(door).items == ()
    door.run(door.scripts.revive("job/1", clear=False))
    assert refs_of(claim(door)) == ["job/1"]


# ------------------------------------------------------------------------------------------------------------- repairs


def test_audit_repairs_what_breaks_the_invariants(door: Door) -> None:
    keys, now = door.keys, door.now_us()
    enqueue(door, "job/sound")
    door.read(
        ("ZADD", keys.due("job"), now, "job/doubled"),
        ("ZADD", keys.idle("job"), now, "job/doubled"),
        ("ZADD", keys.lease("job"), now + S, "job/unheld"),
        ("ZADD", keys.lease("job"), now + 3600 * S, "job/far"),
        ("HSET", keys.holder, "job/far", f"7 h {now} {now} w"),
        ("HSET", keys.holder, "job/orphan", f"7 h {now} {now} w"),
    )
    names = ["job/sound", "job/doubled", "job/unheld", "job/far", "job/orphan"]
    found = door.run(door.scripts.audit("job", names, lease_us=30 * S))
    assert (found.doubled, found.unheld, found.cut, found.orphans) == (1, 1, 1, 1)
    again = door.run(door.scripts.audit("job", names, lease_us=30 * S))
    assert (again.doubled, again.unheld, again.cut, again.orphans) == (0, 0, 0, 0)
    assert set(refs_of(claim(door))) == {"job/sound", "job/doubled", "job/unheld", "job/orphan"}
