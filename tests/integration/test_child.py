"""The runner child as a real process, spoken to over its socket as its parent does."""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest

from setpoint.registry import Policy
from setpoint_workers import child as child_module
from setpoint_workers.child import EXIT_UNFIT, FINISHED, FREE, SHARED_BYTES, STARTED
from setpoint_workers.frames import FRAME_BYTES, BadFrame, FrameReader, pack_frame, send
from tests.apps import basic
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd is of Linux")


class Peer:
    """The parent's end of the socket."""

    def __init__(self, sock: socket.socket, shared: mmap.mmap) -> None:
        self.sock = sock
        self.shared = shared
        self._reader = FrameReader()
        self._frames: list[Any] = []

    def work(
        self, *refs: str, wait_us: int = 0, timeout_us: int | None = None, record: Any = None, first: int = 0
    ) -> None:
        rows = [[first + i, ref, 7, wait_us, 1, 1_000_000, timeout_us, record] for i, ref in enumerate(refs)]
        send(self.sock, ["work", rows])

    def frame(self, timeout: float = 10) -> Any:
        while not self._frames:
            assert select.select([self.sock], [], [], timeout)[0], "the child says nothing"
            data = self.sock.recv(1 << 20)
            if not data:
                return None
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def until(self, name: str) -> Any:
        while (frame := self.frame()) is not None:
            if frame[0] == name:
                return frame
        raise AssertionError(f"the child ended before it said {name}")

    def done(self, count: int = 1) -> dict[int, list[Any]]:
        rows: dict[int, list[Any]] = {}
        while len(rows) < count:
            for row in self.until("done")[1]:
                assert row[0] not in rows
                rows[row[0]] = row
        return rows

    def outcome(self) -> list[Any]:
        (row,) = self.done().values()
        return list(row[1])


class Child(Peer):
    def __init__(self, app: str = "tests.apps.basic:fleet", slots: int = 4, **environment: str) -> None:
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("started")
        os.ftruncate(memory, SHARED_BYTES)
        super().__init__(ours, mmap.mmap(memory, SHARED_BYTES))
        command = ["--fd", str(theirs.fileno()), "--shm", str(memory), "--app", app, "--slots", str(slots)]
        command = [sys.executable, "-m", "setpoint_workers.child", *command, "--parent", str(os.getpid())]
        self.process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=(theirs.fileno(), memory), env={**os.environ, **environment}
        )
        theirs.close()
        os.close(memory)

    def close(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.wait(10)
        self.shared.close()


@pytest.fixture
def new_child() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def make(*args: Any, **options: Any) -> Child:
        children.append(Child(*args, **options))
        return children[-1]

    yield make
    for made in children:
        made.close()


@pytest.fixture
def child(new_child: Callable[..., Child]) -> Child:
    made = new_child()
    made.until("ready")
    return made


# ---------------------------------------------------------------------------------------------------------- frames


def test_frames_survive_any_cut() -> None:
    data = pack_frame(["a", 1, b"x" * 70_000]) + pack_frame(["b", None])
    reader = FrameReader()
    got = [frame for at in range(0, len(data), 997) for frame in reader.feed(data[at : at + 997])]
    assert got == [["a", 1, b"x" * 70_000], ["b", None]]
    one = FrameReader()
    assert [f for byte in pack_frame(["c"]) for f in one.feed(bytes([byte]))] == [["c"]]


@pytest.mark.parametrize(
    "data", [(FRAME_BYTES + 1).to_bytes(4, "big"), b"\0\0\0\1\xc1", b"\0\0\0\1\x01", b"\0\0\0\1\x90", b"\0\0\0\0"]
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(BadFrame):
        FrameReader().feed(data)


# ---------------------------------------------------------------------------------------------------- start and end


def test_ready_tells_the_kinds_and_the_process(new_child: Callable[..., Child]) -> None:
    child = new_child()
    name, manifest, about = child.frame()
    assert name == "ready"
    assert about["pid"] == child.process.pid
    assert Policy.unpack(manifest["door"]).managed
    assert os.getsid(child.process.pid) == child.process.pid
    os.kill(child.process.pid, signal.SIGTERM)
    os.kill(child.process.pid, signal.SIGINT)
    child.work("noop/1")
    assert child.outcome() == ["reached", "up", 0]


def test_stop_ends_it_with_0(child: Child) -> None:
    send(child.sock, ["stop"])
    assert child.process.wait(10) == 0


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("tests.apps.absent:fleet", "ModuleNotFoundError"),
        ("tests.apps.basic:nothing", "has no 'nothing'"),
        ("tests.apps.basic", "module:fleet"),
        ("tests.apps.basic:Door", "is no Fleet"),
    ],
)
def test_an_app_that_does_not_load_is_unfit(new_child: Callable[..., Child], app: str, says: str) -> None:
    child = new_child(app)
    name, text = child.frame()
    assert name == "unfit"
    assert says in text
    assert child.process.wait(10) == EXIT_UNFIT


def test_it_ends_when_the_socket_closes(child: Child) -> None:
    child.work("waits/1")
    child.until("enqueue")
    child.sock.close()
    assert child.process.wait(5) != 0


@pytest.mark.crash
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        sys.path.insert(0, ".")
        from tests.integration.test_child import Child
        child = Child()
        child.until("ready")
        child.work("loops/1")
        print(child.process.pid, flush=True)
        child.frame(timeout=60), child.frame(timeout=60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    process = psutil.Process(pid)
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 1, "the child to die")


# -------------------------------------------------------------------------------------------------------- evaluations


def test_a_managed_entity_moves(child: Child) -> None:
    child.work("door/1", record=["closed", "open", 3, None, None])
    row = child.done()[0]
    assert row[1] == ["reached", "open", 1]
    assert row[4][0][:2] == ["open", "ok"]
    assert row[5] == []


def test_wishes_and_messages_of_an_action(child: Child) -> None:
    child.work("door/1", record=["open", "closed", 3, None, None])
    assert child.frame() == ["enqueue", "door/other", "r", 2_000_000]
    assert child.frame() == ["progress", 0, 1, 2, "half"]
    frame = child.frame()
    assert frame[0] == "done"
    assert frame[1][0][5] == [["r", 3_600_000_000]]


def test_outcomes_of_one_batch(child: Child) -> None:
    refs = ["door/stuck", "door/locked", "door/open", "exits/1", "gone/1", "nokind/1"]
    child.work(*refs, record=["closed", "open", 1, None, None])
    done = child.done(len(refs))
    assert done[0][1] == ["later", 5_000_000, "closed"]
    assert done[1][1][:4] == ["failed", "PermissionError", "no key", "open"]
    assert done[2][1][0] == "reached"
    assert done[3][1][:3] == ["failed", "SystemExit", "7"]
    assert done[4][1] == ["gone"]
    assert done[5][1][:2] == ["failed", "UnknownKind"]
    assert [child.shared[i] for i in range(6)] == [FINISHED] * 6


@pytest.mark.parametrize("ref", ["loops/1", "hangs/1", "halfasync/1", "oneasync/hangs"])
def test_soft_timeout(child: Child, ref: str) -> None:
    child.work(ref, timeout_us=50_000)
    name, where, after_us = child.outcome()
    assert (name, where) == ("timed_out", "run")
    assert 50_000 <= after_us < 2_000_000
    child.work("noop/1", "most/1")
    assert all(row[1][0] == "reached" for row in child.done(2).values())


def test_an_async_action_among_plain_hooks(child: Child) -> None:
    child.work(*[f"oneasync/{i}" for i in range(20)])
    assert all(row[1] == ["waiting", "down"] for row in child.done(20).values())


def test_a_timeout_hits_only_its_own(new_child: Callable[..., Child]) -> None:
    child = new_child(slots=2)
    child.until("ready")
    refs = ["loops/1" if i % 20 == 0 else "noop/1" for i in range(200)]
    child.work(*refs, timeout_us=10_000)
    done = child.done(len(refs))
    for index, ref in enumerate(refs):
        assert done[index][1][0] == ("timed_out" if ref.startswith("loops") else "reached")


def test_async_evaluations_keep_to_the_slots(new_child: Callable[..., Child]) -> None:
    child = new_child(slots=3)
    child.until("ready")
    child.work(*[f"busy/{i}" for i in range(30)])
    assert all(row[1][0] == "waiting" for row in child.done(30).values())
    child.work("most/1")
    assert child.outcome() == ["reached", "3", 0]


def test_nothing_starts_early(child: Child) -> None:
    sent = time.monotonic()
    child.work(*["noop/1", "most/1"] * 20, wait_us=20_000)
    rows = child.done(40)
    assert time.monotonic() - sent >= 0.02
    assert all(0 <= row[3] < 1_000_000 for row in rows.values())


def test_lateness_counts_from_the_due_time(child: Child) -> None:
    child.work("noop/1", wait_us=-5_000_000)
    assert child.done()[0][3] >= 5_000_000


def test_recall_gives_back_what_has_not_started(new_child: Callable[..., Child]) -> None:
    child = new_child(slots=1)
    child.until("ready")
    child.work("waits/1")
    child.until("enqueue")
    child.work("noop/1", "noop/2", first=1)
    child.work("noop/3", wait_us=60_000_000, first=3)
    send(child.sock, ["recall"])
    assert sorted(child.until("returned")[1]) == [1, 2, 3]
    assert [child.shared[i] for i in range(4)] == [STARTED, FREE, FREE, FREE]
    child.work("noop/4", first=1)  # the index again, for other work
    send(child.sock, ["cancel", [0]])
    assert child.done(2)[1][1][0] == "reached"


def test_cancel_is_told_to_the_one_meant(new_child: Callable[..., Child]) -> None:
    child = new_child(slots=2)
    child.until("ready")
    child.work("waits/1", "waits/2")
    child.until("enqueue")
    child.until("enqueue")
    send(child.sock, ["cancel", [1]])
    assert list(child.done()) == [1]
    assert child.shared[0] == STARTED


def test_a_slow_one_does_not_hold_back_results(new_child: Callable[..., Child]) -> None:
    child = new_child(slots=1)
    child.until("ready")
    child.work("noop/1", "waits/1")
    assert list(child.done()) == [0]
    send(child.sock, ["cancel", [1]])
    assert list(child.done()) == [1]


@pytest.mark.crash
def test_the_marks_tell_what_had_started(new_child: Callable[..., Child]) -> None:
    child = new_child(slots=1)
    child.until("ready")
    child.work("noop/1", "dies/1", "noop/2")
    assert child.process.wait(10) == -signal.SIGKILL
    assert [child.shared[i] for i in range(3)] == [FINISHED, STARTED, FREE]


def test_what_applications_print_does_not_reach_the_socket(child: Child) -> None:
    child.work(*[f"noop/{i}" for i in range(300)])
    assert len(child.done(300)) == 300


def test_a_large_batch_of_no_ops(
    new_child: Callable[..., Child], record_property: Callable[[str, object], None]
) -> None:
    child = new_child(slots=4)
    child.until("ready")
    count = 20_000
    used = psutil.Process(child.process.pid).cpu_times()
    child.work(*[f"noop/{i}" for i in range(count)])
    rows = child.done(count)
    after = psutil.Process(child.process.pid).cpu_times()
    each = (after.user + after.system - used.user - used.system) / count * 1e6
    record_property("us_per_item", round(each, 2))
    print(f"{each:.1f} µs of the child's CPU an item")
    assert all(row[1] == ["reached", "up", 0] for row in rows.values())
    assert each < 100


# -------------------------------------------------------------------------------------------------------- in a thread


def test_an_answer_that_cannot_be_sent_fails_alone(new_child: Callable[..., Child]) -> None:
    child = new_child(slots=1)
    child.until("ready")
    child.work("noop/1", "torn/1", "noop/2", "torn/2", "noop/3")
    done = child.done(5)
    assert [done[i][1][0] for i in range(5)] == ["reached", "failed", "reached", "failed", "reached"]
    assert done[1][1][1] == "BadOutcome"


def test_in_a_thread() -> None:
    ours, theirs = socket.socketpair()
    with mmap.mmap(-1, SHARED_BYTES) as shared:
        thread = child_module.run_in_thread(theirs, shared, basic.fleet.registry, 2)
        peer = Peer(ours, shared)
        peer.until("ready")
        peer.work("noop/1", "busy/1", "loops/1", timeout_us=500_000)
        done = peer.done(3)
        assert [done[i][1][0] for i in range(3)] == ["reached", "waiting", "timed_out"]
        send(ours, ["stop"])
        thread.join(10)
        assert not thread.is_alive()
        wait_until(
            lambda: not any(t.name.startswith("setpoint-") for t in threading.enumerate()), what="its threads to end"
        )
    ours.close()
    theirs.close()


def test_the_wire_is_plain_msgpack() -> None:
    assert msgpack.unpackb(pack_frame(["stop"])[4:]) == ["stop"]
