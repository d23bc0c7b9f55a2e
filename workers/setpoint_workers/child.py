"""The runner child: the only process that runs application code. It knows no Redis, only its parent's socket.

Threads: the main one reads frames, starts what had to wait, and keeps time limits. Plain functions run in the threads
of a crew, `async def` on one event loop. Results are sent when the crew's row is empty, after a millisecond, or right
after an evaluation that took longer than that, whichever is first.

Before anything of a payload is looked at, the item's byte in the shared memory says 1; when it has ended, 2. The parent
reads the bytes only after this process has died, to learn what may have killed it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import heapq
import importlib
import mmap
import os
import platform
import queue
import select
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

from setpoint.entity import kind_of
from setpoint.errors import ConfigurationError
from setpoint.outcome import Failed, Outcome, to_wire
from setpoint.registry import Kind, Registry
from setpoint_workers.crew import Crew, Member
from setpoint_workers.evaluate import Call, Evaluation, SoftTimeout, Work, evaluation, run_plain
from setpoint_workers.frames import BadFrame, Frame, FrameReader, send

SHARED_BYTES: Final = 65536
"""Size of the shared memory: one byte an item."""
FREE: Final = 0
STARTED: Final = 1
FINISHED: Final = 2

EXIT_UNFIT: Final = 3
"""The application does not import."""
EXIT_ORPHAN: Final = 4
"""The parent is gone."""

_FLUSH = 0.001
_READ = 1 << 20
_SELECT_LIMIT = 1024
_FOREVER = float("inf")
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exc.restype = ctypes.c_int


class HasRegistry(Protocol):
    """What `--app` names: a fleet, of which only the registry matters here."""

    registry: Registry


class _Slot(Member):
    """One thread that runs plain functions, and what it runs, so that a timeout hits only the work it is meant for."""

    def __init__(self) -> None:
        super().__init__()
        self.token = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.work: Work | None = None

    def arm(self, work: Work) -> None:
        with self.lock:
            self.work = work
            work.slot = self

    def disarm(self, work: Work) -> None:
        """After this no timeout reaches this thread, not even one that is on its way already."""
        with self.lock:
            self.work = None
            work.slot = None
            if work.fired:
                _set_async_exc(self.ident, ctypes.py_object())

    def interrupt(self, work: Work) -> None:
        with self.lock:
            if self.work is work and not work.fired:
                work.fired = True
                _set_async_exc(self.ident, ctypes.py_object(SoftTimeout))


class _Tokens:
    """The right to run: `count` at once over threads and the event loop."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[Callable[[], object]] = deque()

    def take(self, granted: Callable[[], object]) -> bool:
        """Take one; if none is free, say False and call `granted` once the caller has one."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting.append(granted)
            return False

    def give(self) -> None:
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            granted = self._waiting.popleft()
        granted()


_Offload = tuple[Work, Callable[[], Any], "asyncio.Future[Any]"]


class _Results:
    """What has ended and was not sent yet. Its lock is also the socket's, so frames never mix."""

    def __init__(self, sock: socket.socket, wake: Callable[[], None]) -> None:
        self._sock = sock
        self._wake = wake
        self._lock = threading.Lock()
        self._rows: list[Any] = []
        self._ticking = False
        self.closed = False

    @property
    def ticking(self) -> bool:
        """The reader must call `tick` within a millisecond."""
        return self._ticking

    def add(self, row: Any, *, now: bool) -> None:
        """Take one result; `now`: send it and all others at once."""
        wake = False
        with self._lock:
            self._rows.append(row)
            if now:
                self._flush()
            elif not self._ticking:
                self._ticking = wake = True
        if wake:
            self._wake()

    def keep(self, row: Any) -> None:
        """Take one result; the caller flushes soon."""
        with self._lock:
            self._rows.append(row)

    def tick(self) -> None:
        with self._lock:
            if self._rows:
                self._flush()
            else:
                self._ticking = False

    def flush(self) -> None:
        with self._lock:
            if self._rows:
                self._flush()

    def send(self, frame: Frame) -> None:
        with self._lock:
            self._send(frame)

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        try:
            self._send(["done", rows])
        except (BadFrame, ValueError, TypeError, OverflowError):  # one of them cannot be packed: the others can
            for row in rows:
                try:
                    self._send(["done", [row]])
                except (BadFrame, ValueError, TypeError, OverflowError) as error:
                    failed = Failed("BadOutcome", f"what it answered cannot be sent: {error}", "child")
                    self._send(["done", [[row[0], to_wire(failed), row[2], row[3], [], []]]])

    def _send(self, frame: Frame) -> None:
        if self.closed:
            return
        try:
            send(self._sock, frame)
        except OSError:  # the parent is gone; the reader sees it too and acts on it
            self.closed = True


class Runner:
    """Runs what the parent sends until it says stop or goes away."""

    def __init__(self, sock: socket.socket, shared: mmap.mmap, registry: Registry, slots: int) -> None:
        if slots < 1:
            raise ConfigurationError(f"a worker needs at least 1 slot, not {slots}")
        self._sock = sock
        self._shared = shared
        self._kinds: dict[str, Kind] = dict(registry.kinds)
        self._manifest = registry.manifest()
        self._slots = slots
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._results = _Results(sock, self._wake)

        self._serial = 0
        self._pending: dict[int, Work] = {}  # by serial: received, not started
        self._running: dict[int, Work] = {}
        self._later: list[tuple[float, int, Work]] = []  # heap: waits for its time
        self._watch_at = _FOREVER  # when the reader looks at time limits next
        self._stopping = False

        self._crew: Crew[_Slot, Work] = Crew(slots, _Slot, self._run_plain)
        self._offload_threads = 0
        self._tokens = _Tokens(slots)
        asynchronous = [kind.is_async for kind in self._kinds.values()]
        self._mixed = any(asynchronous) and not all(asynchronous)

        self._loop: asyncio.AbstractEventLoop | None = None
        self._async_queue: deque[Work] = deque()
        self._async_waiting = False  # the pump waits for a token
        self._async_flush = False
        self._offloads: queue.SimpleQueue[_Offload | None] = queue.SimpleQueue()
        self._offload_lock = threading.Lock()
        self._offload_idle = 0

    # ------------------------------------------------------------------------------------------------------- reader

    def serve(self) -> bool:
        """Run until the parent says stop (True) or is gone (False)."""
        about = {"pid": os.getpid(), "python": platform.python_version(), "version": _version()}
        self._results.send(["ready", self._manifest, about])
        try:
            return self._read()
        finally:
            self._stopping = True
            self._results.closed = True
            self._crew.close()
            for _ in range(self._offload_threads):
                self._offloads.put(None)
            if (loop := self._loop) is not None:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(loop.stop)

    def _read(self) -> bool:
        reader = FrameReader()
        ours, wake = self._sock.fileno(), self._wake_out
        while True:
            ready = _readable((ours, wake), self._wait())
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                self._watch()
            self._keep_time()
            if ours not in ready:
                continue
            try:
                data = self._sock.recv(_READ)
            except ConnectionError:
                data = b""
            if not data:
                return False
            for frame in reader.feed(data):
                if not self._take(frame):
                    return True

    def _wait(self) -> float | None:
        at = self._watch_at
        if self._later and self._later[0][0] < at:
            at = self._later[0][0]
        if self._results.ticking:
            at = min(at, monotonic() + _FLUSH)
        at = min(at, self._crew.look_at())
        return None if at == _FOREVER else max(0.0, at - monotonic())

    def _keep_time(self) -> None:
        later = self._later
        while later and later[0][0] <= monotonic():
            self._start([heapq.heappop(later)[2]])
        self._crew.look()
        if self._watch_at <= monotonic():
            self._watch()
        if self._results.ticking:
            self._results.tick()

    def _take(self, frame: Frame) -> bool:
        match frame:
            case ["work", items]:
                self._work(items)
            case ["cancel", indexes]:
                wanted = set(indexes)
                for work in self._all():
                    if work.index in wanted:
                        work.cancelled = True
            case ["lost"]:
                for work in self._all():
                    work.lost = True
            case ["recall"]:
                self._recall()
            case ["stop"]:
                self._results.flush()
                return False
            case _:
                print(f"setpoint: the parent sent an unknown frame {frame[0]!r}", file=sys.stderr)  # noqa: T201
        return True

    def _all(self) -> list[Work]:
        return [*self._pending.values(), *self._running.values()]

    def _work(self, items: list[Any]) -> None:
        received = monotonic()
        batch: list[Work] = []
        for index, ref, fence, wait_us, attempt, due_us, timeout_us, record in items:
            self._serial = serial = self._serial + 1
            work = Work(
                serial,
                index,
                ref,
                fence,
                received + wait_us / 1e6,
                attempt,
                due_us,
                timeout_us,
                record,
                self._results.send,
            )
            self._pending[serial] = work
            if wait_us > 0:
                heapq.heappush(self._later, (work.start_at, serial, work))
            else:
                batch.append(work)
        self._start(batch)

    def _start(self, batch: list[Work]) -> None:
        """Hand what has its time come to a thread or the loop."""
        plain: list[Work] = []
        for work in batch:
            work.kind = kind = self._kinds.get(kind_of(work.ref))
            if kind is None:
                if self._pending.pop(work.serial, None) is not None:
                    name = kind_of(work.ref)
                    self._finish_unstarted(work, Failed("UnknownKind", f"this worker has no kind {name!r}", "child"))
            elif kind.is_async:
                self._async_queue.append(work)
                loop = self._loop or self._start_loop()
                if len(self._async_queue) == 1:
                    loop.call_soon_threadsafe(self._pump)
            else:
                plain.append(work)
        if plain:
            self._crew.add(plain)

    def _recall(self) -> None:
        """Give back all that has not started. Whoever takes an item out of `_pending` has it: a thread or this."""
        given: list[int] = []
        for serial in list(self._pending):
            work = self._pending.pop(serial, None)
            if work is not None:
                given.append(work.index)
        self._later.clear()
        self._results.send(["returned", given])

    # --------------------------------------------------------------------------------------------------- time limits

    def _limit(self, work: Work, deadline: float) -> None:
        """Have the reader look again by `deadline`; called by whoever runs `work`."""
        work.deadline = deadline
        if deadline < self._watch_at:
            self._watch_at = deadline  # may race with another thread's, so a woken reader looks at all of them
            self._wake()

    def _watch(self) -> None:
        self._watch_at = _FOREVER
        now = monotonic()
        for work in list(self._running.values()):
            if work.fired:
                continue
            if work.deadline <= now:
                self._interrupt(work)
            elif work.deadline < self._watch_at:
                self._watch_at = work.deadline

    def _interrupt(self, work: Work) -> None:
        slot = work.slot
        if isinstance(slot, _Slot):
            slot.interrupt(work)
        elif work.task is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cancel, work)
        else:  # just on its way from one thread to another, or ending
            self._watch_at = min(self._watch_at, monotonic() + _FLUSH)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_in, b"w")

    # ---------------------------------------------------------------------------------------------------- one item

    def _begin(self, work: Work) -> None:
        self._shared[work.index] = STARTED
        work.limit = self._limit
        work.started = now = monotonic()
        self._running[work.serial] = work
        if work.timeout_us is not None:
            work.list_deadline = now + work.timeout_us / 1e6
            self._limit(work, work.list_deadline)

    def _row(self, work: Work, outcome: Outcome) -> tuple[list[Any], float]:
        self._running.pop(work.serial, None)
        took = monotonic() - work.started
        self._shared[work.index] = FINISHED
        late = int((work.started - work.start_at) * 1e6)
        return [work.index, to_wire(outcome), int(took * 1e6), late, work.log, work.wishes], took

    def _finish_unstarted(self, work: Work, outcome: Outcome) -> None:
        work.started = monotonic()
        row, _ = self._row(work, outcome)
        self._results.add(row, now=True)

    # ---------------------------------------------------------------------------------------------- plain functions

    def _run_plain(self, slot: _Slot, work: Work) -> None:
        """In a thread of the crew."""
        tokens = self._tokens if self._mixed else None
        if tokens is not None and not tokens.take(slot.token.release):
            slot.token.acquire()
        try:
            if self._pending.pop(work.serial, None) is not None:
                self._run_one(slot, work)
        finally:
            if tokens is not None:
                tokens.give()

    def _run_one(self, slot: _Slot, work: Work) -> None:
        outcome: Outcome | None = None
        try:
            self._begin(work)
            slot.arm(work)
            outcome = run_plain(evaluation(work), lambda call: self._await_in_loop(slot, work, call))
            slot.disarm(work)
        except SoftTimeout:
            slot.disarm(work)
        if outcome is None:
            outcome = work.timed_out()
        row, took = self._row(work, outcome)
        self._results.add(row, now=took > _FLUSH or not self._crew.waiting)

    def _await_in_loop(self, slot: _Slot, work: Work, call: Call) -> Any:
        """An `async def` action of a kind whose hooks are plain: the loop runs it while this thread waits."""
        loop = self._loop or self._start_loop()

        async def await_it() -> Any:
            work.task = asyncio.current_task()
            if work.deadline <= monotonic():
                self._cancel(work)
            return await call[0](*call[1])

        slot.disarm(work)
        if work.fired:
            raise SoftTimeout
        try:
            return asyncio.run_coroutine_threadsafe(await_it(), loop).result()
        finally:
            work.task = None
            if not work.fired:
                slot.arm(work)

    # ------------------------------------------------------------------------------------------------ async functions

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        with self._offload_lock:
            if self._loop is not None:
                return self._loop
            self._loop = loop = asyncio.new_event_loop()
        threading.Thread(
            target=_run_loop, args=(loop, lambda: self._stopping), daemon=True, name="setpoint-loop"
        ).start()
        return loop

    def _granted(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._pump, True)

    def _pump(self, token: bool = False) -> None:
        """On the loop: start what waits, as far as there are tokens. `token`: there is one for us already."""
        if token:
            self._async_waiting = False
        while self._async_queue and not self._stopping:
            if not token:
                if self._async_waiting:
                    return
                if not self._tokens.take(self._granted):
                    self._async_waiting = True
                    return
            token = True
            work = self._async_queue.popleft()
            if self._pending.pop(work.serial, None) is not None:
                assert self._loop is not None
                work.task = self._loop.create_task(self._run_async(work))
                token = False
        if token:
            self._tokens.give()

    async def _run_async(self, work: Work) -> None:
        outcome: Outcome | None = None
        self._begin(work)
        try:
            outcome = await self._drive(work, evaluation(work))
        except asyncio.CancelledError:
            outcome = None
        work.ended = True
        row, _ = self._row(work, work.timed_out() if outcome is None else outcome)
        self._results.keep(row)
        if not self._async_flush:
            self._async_flush = True
            assert self._loop is not None
            self._loop.call_soon(self._flush_async)
        self._tokens.give()

    def _flush_async(self) -> None:
        self._async_flush = False
        self._results.flush()

    async def _drive(self, work: Work, steps: Evaluation) -> Outcome:
        """Run an evaluation on the loop: awaits what is to be awaited, lends a thread to plain functions."""
        try:
            call = next(steps)
            while True:
                try:
                    value = await self._call(work, call)
                except BaseException as error:  # noqa: BLE001 - the evaluation judges it, whatever it is
                    call = steps.throw(error)
                else:
                    call = steps.send(value)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome

    async def _call(self, work: Work, call: Call) -> Any:
        function, args, awaits, quick = call
        if awaits:
            return await function(*args)
        if quick:
            return function(*args)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with self._offload_lock:
            spawn = not self._offload_idle
            if not spawn:
                self._offload_idle -= 1
        self._offloads.put((work, lambda: function(*args), future))
        if spawn:
            self._offload_threads += 1
            name = f"setpoint-offload-{self._offload_threads}"
            threading.Thread(target=self._run_offloads, daemon=True, name=name).start()
        return await future

    def _run_offloads(self) -> None:
        slot = _Slot()
        while (job := self._offloads.get()) is not None:
            work, function, future = job
            value: Any = None
            error: BaseException | None = None
            try:
                slot.arm(work)
                try:
                    value = function()
                except SoftTimeout:
                    raise
                except BaseException as caught:  # noqa: BLE001 - handed to the evaluation
                    error = caught
                slot.disarm(work)
            except SoftTimeout as timeout:
                error = timeout
                slot.disarm(work)
            with self._offload_lock:
                self._offload_idle += 1
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(_resolve, future, value, error)

    def _cancel(self, work: Work) -> None:
        """On the loop: the time of `work` is over."""
        slot = work.slot
        if isinstance(slot, _Slot):  # in a plain function since
            slot.interrupt(work)
        elif work.task is not None and not work.ended and not work.fired:
            work.fired = True
            work.task.cancel()


def _resolve(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):  # a future cannot hold it
        wrapped = RuntimeError(f"StopIteration raised: {error}")
        wrapped.__cause__ = error
        error = wrapped
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _run_loop(loop: asyncio.AbstractEventLoop, stopping: Callable[[], bool]) -> None:
    asyncio.set_event_loop(loop)
    while True:
        with contextlib.suppress(SystemExit, KeyboardInterrupt):  # asyncio lets these out of callbacks
            loop.run_forever()
        if stopping():
            break
    for task in (left := asyncio.all_tasks(loop)):
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


def _readable(files: tuple[int, int], timeout: float | None) -> list[int]:
    """Which of `files` can be read. `select` knows microseconds, `poll` only milliseconds: it is for high numbers."""
    if max(files) < _SELECT_LIMIT:
        return select.select(files, (), (), timeout)[0]
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    return [file for file, _ in poll.poll(None if timeout is None else timeout * 1000)]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("setpoint")
    except PackageNotFoundError:
        return "0"


# -------------------------------------------------------------------------------------------------------- in a thread


def run_in_thread(sock: socket.socket, shared: mmap.mmap, registry: Registry, slots: int) -> threading.Thread:
    """Run the same code in a thread of the parent, for `--isolation none`: nothing can be killed there."""
    runner = Runner(sock, shared, registry, slots)
    thread = threading.Thread(target=runner.serve, daemon=True, name="setpoint-runner")
    thread.start()
    return thread


# --------------------------------------------------------------------------------------------------------- in a process


def load(app: str) -> Registry:
    """Import `module:fleet` and return the fleet's registry."""
    module_name, colon, path = app.partition(":")
    if not module_name or not colon or not path:
        raise ConfigurationError(f"{app!r} names no fleet: write module:fleet, for example myapp.fleet:fleet")
    found: Any = importlib.import_module(module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigurationError(f"{app!r}: module {module_name} has no {path!r}") from None
    registry: object = getattr(found, "registry", None)
    if not isinstance(registry, Registry):
        raise ConfigurationError(f"{app!r} is no Fleet but a {type(found).__name__}")
    return registry


def _settle_in(parent: int) -> None:
    """Die with the parent, lead a session of our own, wake up on time, leave signals to the parent."""
    if os.getsid(0) != os.getpid():
        with contextlib.suppress(PermissionError):
            os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    if parent and os.getppid() != parent:  # it died before we asked to die with it
        os._exit(EXIT_ORPHAN)


def _leave(code: int) -> None:
    """End at once, whatever other threads do."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main(argv: list[str] | None = None) -> None:
    """Entry of `python -m setpoint_workers.child`; never returns."""
    parser = argparse.ArgumentParser(
        prog="setpoint_workers.child", description="Started by setpoint worker, not by hand."
    )
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--shm", type=int, required=True)
    parser.add_argument("--app", required=True)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--parent", type=int, default=0)
    options = parser.parse_args(argv)

    _settle_in(options.parent)
    sock = socket.socket(fileno=options.fd)
    sock.setblocking(True)
    os.set_inheritable(options.fd, False)
    os.set_inheritable(options.shm, False)
    os.dup2(2, 1)  # what applications print goes where their errors go
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        registry = load(options.app)
        runner = Runner(sock, mmap.mmap(options.shm, SHARED_BYTES), registry, options.slots)
    except BaseException:  # noqa: BLE001 - even SystemExit: the parent must learn why
        with contextlib.suppress(OSError):
            send(sock, ["unfit", traceback.format_exc()])
        _leave(EXIT_UNFIT)
    else:
        _leave(0 if runner.serve() else EXIT_ORPHAN)


if __name__ == "__main__":
    main()
