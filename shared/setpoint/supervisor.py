"""Several processes under one roof: started together, kept running, their output told apart, stopped in order.

`setpoint demo` and `setpoint dev` run a whole fleet with it. It knows nothing of Redis or of entities.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from types import FrameType, TracebackType
from typing import Final, Self

from setpoint.errors import ConfigurationError

__all__ = ["FIRST_DELAY", "LONGEST_DELAY", "Program", "Signals", "Supervisor", "catch_signals"]

#: Seconds until a program that ended is started again; doubled each time, up to `LONGEST_DELAY`.
FIRST_DELAY: Final = 0.2
LONGEST_DELAY: Final = 10.0

#: A program that ran this many seconds is healthy: its next end counts as the first one.
_HEALTHY: Final = 10.0
_TICK: Final = 0.05
_LINE_LIMIT: Final = 64 * 1024
_USAGE: Final = 2

#: Runs in front of the program, in the same process: when the supervisor is killed, Linux tells the program to stop.
#: Not `preexec_fn`, which is unsafe where there are threads.
_TETHER: Final = (
    "import ctypes,os,sys\n"
    "ctypes.CDLL(None).prctl(1,15,0,0,0)\n"
    "if os.getppid()!=int(sys.argv[1]): sys.exit(143)\n"
    "os.execv(sys.argv[2],sys.argv[2:])\n"
)

Sink = Callable[[str, str], None]
"""Takes the name of a program and one line of its output."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. Programs of a higher stage start later and are stopped, and are gone, before the lower ones."""

    name: str
    argv: Sequence[str]
    stage: int = 0
    #: The whole environment; that of the supervisor if left out.
    env: Mapping[str, str] | None = None
    #: Seconds between SIGTERM and SIGKILL.
    grace: float = 35.0


@dataclass(slots=True)
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    tail: bytearray = field(default_factory=bytearray)
    born: float = 0.0
    again_at: float | None = 0.0
    delay: float = FIRST_DELAY
    starts: int = 0
    killed: bool = False


class Supervisor:
    """Runs programs in a thread of its own, between `start()` and `stop()`; also a context manager.

    Each program has a session of its own, so that Ctrl+C in the terminal reaches the supervisor alone, which then stops
    them in order. A program that ends is started again, after a growing delay. One that ends with status 2, "cannot be
    meant", is not: it would say the same for ever, so `failed` names it.
    """

    def __init__(self, programs: Sequence[Program], sink: Sink) -> None:
        names = [program.name for program in programs]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"two programs have one name: {', '.join(names)}")
        self._children = {program.name: _Child(program) for program in programs}
        self._sink = sink
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._lock = threading.Lock()
        self._stopping = False
        self._at_once = False
        self._restarts: deque[int] = deque()
        self._failed: str | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._closed = False

    # -------------------------------------------------------------------------------------------------------- verbs

    def start(self) -> None:
        """Start all programs; return at once."""
        self._thread.start()

    def stop(self, *, at_once: bool = False) -> None:
        """Stop all programs, the highest stage first; return when no process is left. `at_once` kills them."""
        with self._lock:
            self._stopping = True
            self._at_once = self._at_once or at_once
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        if not self._closed:
            self._closed = True
            self._selector.close()
            os.close(self._wake_out)
            os.close(self._wake_in)

    def hurry(self) -> None:
        """Kill what has not stopped yet, while another thread waits in `stop`. Safe in a signal handler."""
        self._at_once = True

    def restart(self, stage: int) -> None:
        """Stop the programs of `stage` and above, then start them again; for code that changed."""
        self._restarts.append(stage)
        self._wake()

    def pid(self, name: str) -> int | None:
        """The process of a program; None while it does not run."""
        process = self._children[name].process
        return process.pid if process is not None and process.returncode is None else None

    def starts(self, name: str) -> int:
        """How often a program has been started."""
        return self._children[name].starts

    @property
    def failed(self) -> str | None:
        """The program that will not be started again, because it says that it cannot be meant (status 2)."""
        return self._failed

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # --------------------------------------------------------------------------------------------------- its thread

    def _wake(self) -> None:
        with suppress(OSError):
            os.write(self._wake_in, b"!")

    def _run(self) -> None:
        stages = sorted({child.program.stage for child in self._children.values()})
        try:
            while not self._stopping:
                if self._restarts:
                    self._stop_from(self._restarts.popleft(), stages)
                self._start_due()
                self._turn()
        finally:
            self._stop_from(min(stages, default=0), stages)

    def _start_due(self) -> None:
        now = monotonic()
        for child in sorted(self._children.values(), key=lambda child: child.program.stage):
            if child.process is None and child.again_at is not None and child.again_at <= now:
                self._launch(child)

    def _launch(self, child: _Child) -> None:
        argv = list(child.program.argv)
        if sys.platform == "linux":
            argv = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *argv]
        try:
            child.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=None if child.program.env is None else dict(child.program.env),
                start_new_session=True,
            )
        except OSError as error:
            self._sink(child.program.name, f"cannot start {child.program.argv[0]}: {error.strerror}")
            self._come_again(child)
            return
        child.born = monotonic()
        child.starts += 1
        child.killed = False
        output = child.process.stdout
        if output is not None:
            os.set_blocking(output.fileno(), False)
            self._selector.register(output, selectors.EVENT_READ, child)

    def _turn(self) -> None:
        """Pass output on for a moment, and see who ended."""
        for key, _ in self._selector.select(_TICK):
            child: _Child | None = key.data
            if child is None:
                with suppress(BlockingIOError):
                    os.read(self._wake_out, 4096)
            else:
                self._read(child)
        for child in self._children.values():
            if child.process is not None and child.process.poll() is not None:
                self._ended(child, child.process.returncode)

    def _read(self, child: _Child) -> bool:
        """Pass on what the program wrote; False if there is nothing more for now."""
        output = child.process.stdout if child.process else None
        if output is None or output.closed:
            return False
        try:
            data = os.read(output.fileno(), _LINE_LIMIT)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(output)
            output.close()
            return False
        child.tail += data
        *lines, rest = bytes(child.tail).split(b"\n")
        if len(rest) > _LINE_LIMIT:
            lines.append(rest)
            rest = b""
        child.tail[:] = rest
        for line in lines:
            self._sink(child.program.name, line.decode(errors="replace").rstrip("\r"))
        return True

    def _ended(self, child: _Child, status: int) -> None:
        while self._read(child):
            pass
        output = child.process.stdout if child.process else None
        if output is not None and not output.closed:  # a process that it left behind has it open
            self._selector.unregister(output)
            output.close()
        if child.tail:
            self._sink(child.program.name, child.tail.decode(errors="replace"))
            child.tail.clear()
        child.process = None
        if child.again_at is None:  # it was told to
            return
        how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        if status == _USAGE:
            child.again_at = None
            self._failed = self._failed or child.program.name
            self._sink(child.program.name, f"{how}: not started again")
            return
        delay = self._come_again(child)
        self._sink(child.program.name, f"{how}: starting it again in {delay:g} s")

    def _come_again(self, child: _Child) -> float:
        now = monotonic()
        if child.starts and now - child.born >= _HEALTHY:
            child.delay = FIRST_DELAY
        delay = child.delay
        child.again_at = now + delay
        child.delay = min(delay * 2, LONGEST_DELAY)
        return delay

    def _stop_from(self, stage: int, stages: Sequence[int]) -> None:
        """Stop `stage` and above, the highest first; what is not stopping for good is due to start again."""
        stopped: list[_Child] = []
        for each in reversed([each for each in stages if each >= stage]):
            group = [child for child in self._children.values() if child.program.stage == each]
            self._stop_group(group)
            stopped += group
        for child in stopped:
            child.again_at = 0.0
            child.delay = FIRST_DELAY

    def _stop_group(self, group: Sequence[_Child]) -> None:
        for child in group:
            child.again_at = None
            if child.process is not None and not self._at_once:
                with suppress(ProcessLookupError):
                    child.process.send_signal(signal.SIGTERM)
        asked = monotonic()
        while any(child.process is not None for child in group):
            for child in group:
                overdue = self._at_once or monotonic() - asked > child.program.grace
                if child.process is not None and overdue and not child.killed:
                    child.killed = True
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(child.process.pid, signal.SIGKILL)
            self._turn()


# ----------------------------------------------------------------------------------------------------------- signals


class Signals:
    """Counts SIGINT and SIGTERM. `wait` returns early for one, whatever else the main thread is doing."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._count = 0
        self._on_second: Callable[[], None] | None = None
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)

    def wait(self, seconds: float | None) -> bool:
        """Wait so long, or until a signal came: True if one came."""
        return self.first is not None or bool(self._selector.select(seconds)) or self.first is not None

    def on_second(self, action: Callable[[], None]) -> None:
        """Call `action`, in the signal handler, when a second signal comes: the person is in a hurry."""
        self._on_second = action

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del frame
        self._count += 1
        if self.first is None:
            self.first = number
        elif self._on_second is not None:
            self._on_second()
        with suppress(OSError):
            os.write(self._in, b"!")

    def close(self) -> None:
        """Let go of its descriptors."""
        self._selector.close()
        os.close(self._out)
        os.close(self._in)


@contextmanager
def catch_signals() -> Generator[Signals]:
    """SIGINT, SIGTERM and SIGHUP are noted instead of ending this process; in the main thread only."""
    signals = Signals()
    before = {number: signal.signal(number, signals.note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signals.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
