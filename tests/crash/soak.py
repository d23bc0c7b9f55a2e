"""`make soak`: a fleet that works for minutes while its workers, schedulers and its Valkey are killed, all at random.

SOAK_SECONDS says how long faults happen (600), SOAK_SEED replays the choice of faults of an earlier run (what the
processes do meanwhile is up to the machine). It fails unless all that `Soak` checks holds. What a run leaves is kept if
it fails.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from setpoint import Fleet
from setpoint.counters import TAKEOVERS
from setpoint.embedded import find_binary
from setpoint.engine.door import Door
from setpoint.engine.records import Trouble
from setpoint.engine.scripts import Ending, Settlement
from tests.servers import Server
from tests.waiting import let_pass, wait_until

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "soak"
LEASE = 2.0
WORKERS, SCHEDULERS = 3, 2
SIZES = {"loop": 200, "slow": 6, "resync": 80, "gate": 40}
REFS = frozenset(f"{kind}/{i}" for kind, size in SIZES.items() for i in range(size))
GATES = sorted(ref for ref in REFS if ref.startswith("gate/"))

PAUSE = (0.2, 1.2)
"""Seconds between two faults, at least and at most."""
SETTLE = 60.0
"""Seconds in which the fleet must be well again once faults have ended."""


@dataclass(slots=True)
class Span:
    """From when till when something was so, by the clock that all processes share."""

    begin: float
    end: float = float("inf")

    def meets(self, begin: float, end: float) -> bool:
        return self.begin <= end and begin <= self.end


@dataclass(slots=True)
class Run:
    """An evaluation that has started and, as far as we know, not ended."""

    fence: int
    at: float
    worker: int


@dataclass
class Evaluations:
    """What the application noted, read as it grows, and what is wrong with it."""

    log: Path
    dead: dict[int, float] = field(default_factory=dict)
    """Worker's pid -> when it was killed."""
    frozen: defaultdict[int, list[Span]] = field(default_factory=lambda: defaultdict(list))
    """Worker's pid -> when it was stopped."""
    outages: list[Span] = field(default_factory=list)
    """When the server was down."""

    count: int = 0
    cut_short: int = 0
    """Evaluations whose worker was killed."""
    overlaps: Counter[str] = field(default_factory=Counter)
    """What excuses each: `stop` or `server`."""
    late: int = 0
    """Evaluations that started after one with a younger fence had."""
    wrong: list[str] = field(default_factory=list)

    last_start: dict[str, float] = field(default_factory=dict)
    """When the last evaluation that ended had started."""
    fences: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _running: defaultdict[str, dict[int, Run]] = field(default_factory=lambda: defaultdict(dict))
    _read: int = 0

    def read(self) -> None:
        """Take in what was noted since."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.decode().splitlines():
            word, fence, at, worker, ref = line.split(" ")
            run = Run(int(fence), int(at) / 1e6, int(worker))
            if word == "start":
                self._started(ref, run)
            else:
                self._ended(ref, run)

    def _started(self, ref: str, run: Run) -> None:
        self.count += 1
        running, fences = self._running[ref], self.fences[ref]
        if run.fence in fences[-20:]:
            self.wrong.append(f"{ref} started twice under fence {run.fence}")
        for other in list(running.values()):
            if self.dead.get(other.worker, float("inf")) <= run.at:
                del running[other.fence]
                self.cut_short += 1
                continue
            self._excuse(ref, other, run)
        if fences and run.fence < max(fences[-20:]):
            self.late += 1
            self._excuse(ref, run, run, "started after a younger one")
        fences.append(run.fence)
        running[run.fence] = run

    def _excuse(self, ref: str, other: Run, run: Run, what: str = "overlaps") -> None:
        """Two at once are allowed only if the one with the older fence could not beat for a while."""
        begin, end = min(other.at, run.at) - 2 * LEASE, run.at
        older = min(other, run, key=lambda each: each.fence)
        if any(span.meets(begin, end) for span in self.frozen[older.worker]):
            self.overlaps["stop"] += 1
        elif any(span.meets(begin, end) for span in self.outages):
            self.overlaps["server"] += 1
        else:
            self.wrong.append(f"{ref} {what} for no reason: {other} and {run}")

    def _ended(self, ref: str, run: Run) -> None:
        started = self._running[ref].pop(run.fence, None)
        if started is None:
            self.wrong.append(f"{ref} ended under fence {run.fence} but never started")
        else:
            self.last_start[ref] = max(started.at, self.last_start.get(ref, 0.0))


class Soak:
    """One fleet under random faults.

    At all times: each ref is in exactly one place; each lease has a holder and each holder a lease; fences grow; what
    comes with an old fence is refused; nobody is parked or charged; no process ends by itself; evaluations overlap only
    where a worker was stopped or the server was down. At the end: every ref has been evaluated and every goal reached
    after the last fault, nobody is in trouble, and all processes end well when told.
    """

    def __init__(self, seconds: float, seed: int, folder: Path) -> None:
        self.seconds, self.seed, self.folder = seconds, seed, folder
        self.random = random.Random(seed)
        self.chance = random.Random(seed)  # for what depends on how the run goes, so that faults replay
        self.output = folder / "output"
        log = folder / "noted"
        log.touch()
        self.evaluations = Evaluations(log)
        self.server = Server(find_binary(), {"appendonly": "yes", "appendfsync": "everysec"})
        self.fleet = Fleet(self.server.url, namespace=NAMESPACE, unknown_kind="accept")
        self.door = Door(self.server.url, NAMESPACE, role="soak")
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SETPOINT_")},
            "SETPOINT_REDIS_URL": self.server.url,
            "SETPOINT_NAMESPACE": NAMESPACE,
            "SETPOINT_LEASE": f"{LEASE:g}s",
            "SOAK_LOG": str(log),
        }
        self.workers: list[subprocess.Popen[bytes]] = []
        self.schedulers: list[subprocess.Popen[bytes]] = []
        self.stopped: dict[int, tuple[float, list[psutil.Process], Span]] = {}
        self.goals: dict[str, str] = {}
        self.done: Counter[str] = Counter()
        self.high_fence = 0
        self.settled_in = 0.0

    # ------------------------------------------------------------------------------------------------------- the run

    def run(self) -> None:
        """All of it; AssertionError for whatever does not hold."""
        try:
            self._start()
            self._trouble_them()
            self._settle()
            self._stop()
        finally:
            self._clear()

    def _start(self) -> None:
        self.server.start()
        self.schedulers = [self._spawn("scheduler") for _ in range(SCHEDULERS)]
        self.workers = [self._worker() for _ in range(WORKERS)]
        self.fleet.enqueue_many((ref, 0) for ref in REFS if ref not in GATES)
        self._set_goals(GATES)
        self._until(lambda: len(self._evaluated_since(0.0)) == len(REFS), "all to be evaluated once", 30)

    def _trouble_them(self) -> None:
        faults = {
            self._kill_worker: 35,
            self._stop_worker: 25,
            self._kill_clients: 13,
            self._kill_server: 10,
            self._flush_rq: 10,
            self._kill_scheduler: 7,
        }
        ends = time.monotonic() + self.seconds
        while time.monotonic() < ends:
            self._pass(self.random.uniform(*PAUSE))
            (fault,) = self.random.choices(list(faults), list(faults.values()))
            fault()
            self._set_goals(self.random.sample(GATES, 3))
            self._check()
        while self.stopped:
            self._pass(0.05)

    def _settle(self) -> None:
        began = time.monotonic()
        self._until(self._goals_reached, "the goals that were set meanwhile", SETTLE)
        self._set_goals(GATES)
        for wanted in (lambda: len(self._evaluated_since(began)) == len(REFS), self._goals_reached):
            self._until(wanted, "all to be evaluated after the last fault", SETTLE)
        self._until(lambda: not self._troubles(), "all suspects to be cleared", SETTLE)
        self.settled_in = time.monotonic() - began
        self._check()

    def _stop(self) -> None:
        for process in (*self.workers, *self.schedulers):
            process.send_signal(signal.SIGTERM)
        for process in (*self.workers, *self.schedulers):
            code = process.wait(40)
            assert code == 0, f"process {process.pid} was told to end and exited with {code}"
        self.workers, self.schedulers = [], []
        self._check()
        places = self._places()
        assert not places["lease"], f"leased though nobody runs: {places['lease']}"

    def report(self) -> str:
        """What was done and seen, for people."""
        noted, did = self.evaluations, self.done
        lines = [
            f"seed {self.seed}: {self.seconds:g} s of faults on {len(REFS)} entities",
            f"  processes   {SCHEDULERS} schedulers, {WORKERS} workers with leases of {LEASE:g} s",
            f"  killed      {did['worker']} workers, {did['scheduler']} schedulers, {did['server']} times the server",
            f"  stopped     {did['stop']} times a worker ({did['stop whole']} with its children)",
            f"  broken      {did['clients']} times all connections; RQ's keys were flushed {did['rq']} times",
            f"  evaluated   {noted.count} times, {noted.cut_short} cut short by a kill, {did['takeovers']} takeovers",
            f"  goals       {did['goals']} set",
            f"  overlaps    {noted.overlaps['stop']} after a stop, {noted.overlaps['server']} after an outage",
            f"  late        {noted.late} of these had an older fence than one that had started",
            f"  checked     {did['checks']} times all places, {did['refused']} old fences refused of {did['probes']}",
            f"  most deaths around one ref: {did['suspect']}; settled in {self.settled_in:.1f} s",
        ]
        return "\n".join(lines)

    # -------------------------------------------------------------------------------------------------------- faults

    def _kill_worker(self) -> None:
        free = self._free_workers()
        if free:
            self._kill(self.workers, free[0], self._worker)
            self.done["worker"] += 1

    def _free_workers(self) -> list[subprocess.Popen[bytes]]:
        """Those that are not stopped, from a random one on; takes as much chance whoever is stopped."""
        first = self.random.randrange(WORKERS)
        row = self.workers[first:] + self.workers[:first]
        return [process for process in row if process.pid not in self.stopped]

    def _kill_scheduler(self) -> None:
        self._kill(self.schedulers, self.random.choice(self.schedulers), lambda: self._spawn("scheduler"))
        self.done["scheduler"] += 1

    def _kill(
        self,
        row: list[subprocess.Popen[bytes]],
        victim: subprocess.Popen[bytes],
        again: Callable[[], subprocess.Popen[bytes]],
    ) -> None:
        self._all_run()
        victim.kill()
        victim.wait(10)
        self.evaluations.dead[victim.pid] = time.monotonic()
        row[row.index(victim)] = again()

    def _stop_worker(self) -> None:
        """As a machine that pauses: the worker alone, or with its children."""
        seconds, whole = LEASE * self.random.uniform(1.2, 2.5), self.random.random() < 0.5
        free = self._free_workers()
        if len(free) < 2:
            return
        victim = psutil.Process(free[0].pid)
        family = [victim]
        victim.suspend()  # before its children are looked up, so that it has no new ones
        span = Span(time.monotonic())
        if whole:
            for child in victim.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.suspend()
                    family.append(child)
        self.evaluations.frozen[victim.pid].append(span)
        self.stopped[victim.pid] = (span.begin + seconds, family, span)
        self.done["stop"] += 1
        self.done["stop whole"] += whole

    def _resume(self, pid: int) -> None:
        _, family, span = self.stopped.pop(pid)
        for process in reversed(family):
            with suppress(psutil.NoSuchProcess):
                process.resume()
        span.end = time.monotonic()

    def _kill_server(self) -> None:
        down, span = self.random.choice((0.0, 0.3, 1.5)), Span(time.monotonic())
        self.evaluations.outages.append(span)
        self.server.kill9()
        self._pass(down)
        self.server.start()
        span.end = time.monotonic()
        self.done["server"] += 1

    def _kill_clients(self) -> None:
        with self.server.client() as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        self.done["clients"] += 1

    def _flush_rq(self) -> None:
        with self.server.client() as client:
            keys = list(client.scan_iter("rq:*", count=1000))
            if keys:
                client.unlink(*keys)
        self.done["rq"] += 1

    def _set_goals(self, refs: list[str]) -> None:
        for ref in refs:
            goal = "closed" if self.goals.get(ref, "open") == "open" else "open"
            self.fleet.set(ref, goal)
            self.goals[ref] = goal
            self.done["goals"] += 1

    # -------------------------------------------------------------------------------------------------------- checks

    def _check(self) -> None:
        """Whether all holds that holds at all times."""
        self._all_run()
        self.evaluations.read()
        assert not self.evaluations.wrong, "; ".join(self.evaluations.wrong[:5])
        self._places()
        for ref, trouble in self._troubles().items():
            self.done["suspect"] = max(self.done["suspect"], trouble.suspect)
            charged = trouble.failures or trouble.crashes or trouble.reason != "-"
            assert not charged, f"{ref} was charged: {trouble}"
        self._probe()
        self.done["checks"] += 1

    def _places(self) -> dict[str, set[str]]:
        """Who is where, as of one moment; checks that each is in one place, and that leases and holders agree."""
        keys = self.door.keys
        sets = [(place, getattr(keys, place)(kind)) for kind in SIZES for place in ("due", "lease", "idle", "parked")]
        with self.server.client() as client, client.pipeline(transaction=True) as pipeline:
            for _, key in sets:
                pipeline.zrange(key, 0, -1)
            pipeline.hgetall(keys.holder)
            pipeline.get(keys.fence)
            pipeline.hget(keys.counters, TAKEOVERS)
            *found, holders, fence, takeovers = pipeline.execute()
        at: dict[str, set[str]] = defaultdict(set)
        for (place, _), refs in zip(sets, found, strict=True):
            at[place].update(refs)
        places = Counter(ref for refs in found for ref in refs)
        doubled = [ref for ref, count in places.items() if count > 1]
        assert not doubled, f"in two places: {doubled}"
        assert places.keys() == REFS, f"nowhere: {REFS - places.keys()}; unknown: {places.keys() - REFS}"
        assert holders.keys() == at["lease"], f"holders and leases differ: {holders.keys() ^ at['lease']}"
        assert not at["parked"], f"parked: {at['parked']}"
        newest = max((int(held.split(" ")[0]) for held in holders.values()), default=0)
        assert self.high_fence <= int(fence or 0) >= newest, f"fences shrank: {self.high_fence}, {newest}, now {fence}"
        self.high_fence = int(fence or 0)
        self.done["takeovers"] = int(takeovers or 0)
        return at

    def _troubles(self) -> dict[str, Trouble]:
        (found,) = self.door.read(("HGETALL", self.door.keys.trouble))
        return {ref.decode(): Trouble.unpack(value) for ref, value in found.items()}

    def _probe(self) -> None:
        """Settle some with fences that are certainly old: they would be gone."""
        gone = Ending("gone")
        old = [(ref, fences[-2:]) for ref, fences in sorted(self.evaluations.fences.items()) if len(fences) > 1]
        some = self.chance.sample(old, min(len(old), 20))
        said = self.door.run(self.door.scripts.settle([Settlement([ref], min(two), gone) for ref, two in some]))
        self.done["probes"] += len(some)
        self.done["refused"] += sum(status == "stale" for status in said)
        assert all(status == "stale" for status in said), (
            f"an old fence was accepted: {[*zip(some, said, strict=True)]}"
        )

    def _evaluated_since(self, moment: float) -> set[str]:
        self.evaluations.read()
        return {ref for ref, at in self.evaluations.last_start.items() if at > moment}

    def _goals_reached(self) -> bool:
        found = self.door.read(*(("HMGET", self.door.keys.record(ref), "state", "goal") for ref in GATES))
        for ref, (_, goal) in zip(GATES, found, strict=True):
            assert goal == self.goals[ref].encode(), f"the goal of {ref} was lost: {goal}, {self.goals[ref]} was set"
        return all(state == goal for state, goal in found)

    def _all_run(self) -> None:
        for process in (*self.workers, *self.schedulers):
            code = process.poll()
            assert code is None, f"process {process.pid} ended by itself with {code}: {process.args!r}"

    # ----------------------------------------------------------------------------------------------------- processes

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "setpoint.cli", *argv]
        with self.output.open("ab") as out:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # ^C is for us alone
            )

    def _worker(self) -> subprocess.Popen[bytes]:
        return self._spawn("worker", "--app", "tests.apps.soak:fleet", "--slots", "8")

    def _pass(self, seconds: float) -> None:
        """Let time pass, and let those go on whose stop is over."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            for pid in [pid for pid, (at, _, _) in self.stopped.items() if at <= now]:
                self._resume(pid)
            if now >= until:
                return
            let_pass(min([until, *(at for at, _, _ in self.stopped.values())]) - now)

    def _until(self, predicate: Callable[[], object], what: str, timeout: float) -> None:
        def asked() -> object:
            self._all_run()
            return predicate()

        try:
            wait_until(asked, timeout, what)
        except AssertionError as error:
            missing = REFS - self._evaluated_since(time.monotonic() - timeout)
            facts = f"not evaluated: {sorted(missing)[:10]}, in trouble: {list(self._troubles().items())[:5]}"
            raise AssertionError(f"{error}; {facts}; {self.fleet.counts()}") from error

    def _clear(self) -> None:
        for pid in list(self.stopped):
            self._resume(pid)
        for process in (*self.workers, *self.schedulers):
            process.kill()
            process.wait(10)
        self.fleet.close()
        self.door.close()
        self.server.destroy()


def main() -> None:
    """Soak as the environment says; exits with 1 if something does not hold."""
    seconds = float(os.environ.get("SOAK_SECONDS") or 600)
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(1_000_000))
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"soaking for {seconds:g} s with SOAK_SEED={seed}", flush=True)
    soak = Soak(seconds, seed, folder)
    try:
        soak.run()
    except AssertionError as error:
        print(soak.report())
        print(f"FAILED: {error}\nwhat the processes said and the application noted is in {folder}", flush=True)
        sys.exit(1)
    print(soak.report())
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
